# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""Secrets do not show, and are taken out of what is logged."""

import copy
import dataclasses
import io
import json
import logging
import pickle
import sys
import time
import traceback
import types
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import strategies as st
from oslo_config import cfg
from oslo_log import formatters

from mh_core import jose
from mh_core.encoding import b64u
from mh_core.secret import (
    SENSITIVE,
    RedactFilter,
    RedactFormatter,
    Secret,
    protect,
    redact,
)
from tests.unit.mh_core.vectors import given

DATA = b"0123456789abcdef0123456789abcdef"
TEXT = DATA.decode()
KEY = jose.generate_key()
JWE = jose.wrap(DATA, KEY, b"a")
JWT = jose.sign(b"{}", KEY, "t")


@dataclasses.dataclass
class Holder:
    dek: Secret


# -- Secret ------------------------------------------------------------------


def test_a_secret_does_not_print_itself() -> None:
    secret = Secret(DATA)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r}",
        "%s %r" % (secret, secret),  # noqa: UP031
        repr([secret]),
        repr(Holder(secret)),
        repr(dir(secret)),
    ]
    assert not any(TEXT in text or "0123" in text for text in shown)
    assert secret.reveal() == DATA


def test_a_secret_is_in_no_traceback() -> None:
    secret = Secret(DATA)
    try:
        raise ValueError(secret)
    except ValueError as exc:
        found = traceback.TracebackException.from_exception(
            exc, capture_locals=True
        )
    text = "".join(found.format())
    assert "secret = <secret>" in text
    assert TEXT not in text


def test_a_secret_is_not_copied_out() -> None:
    secret = Secret(DATA)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(secret, protocol)
    with pytest.raises(TypeError):
        copy.deepcopy(secret)
    with pytest.raises(TypeError):
        dataclasses.asdict(Holder(secret))
    with pytest.raises(TypeError):
        json.dumps({"dek": secret})
    with pytest.raises(TypeError):
        bytes(secret)  # type: ignore[call-overload]
    assert not hasattr(secret, "__dict__")


def test_a_secret_is_compared_and_not_hashed() -> None:
    assert Secret(DATA) == Secret(bytearray(DATA))
    assert Secret(DATA) != Secret(DATA[:-1])
    assert Secret(DATA) != DATA
    with pytest.raises(TypeError):
        hash(Secret(DATA))
    with pytest.raises(TypeError):
        {Secret(DATA)}  # noqa: B018


def test_a_secret_does_not_change_with_its_source() -> None:
    source = bytearray(DATA)
    secret = Secret(source)
    source[0] = 0
    assert secret.reveal() == DATA


# -- redact ------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SENSITIVE))
def test_members_by_name(name: str) -> None:
    for spelled in (name, name.upper(), name.title()):
        document = {"a": [{"b": ({spelled: "hunter2", "c": 1},)}]}
        found = redact(document)
        assert found == {"a": [{"b": [{spelled: "***", "c": 1}]}]}


@pytest.mark.parametrize(
    "name",
    [
        "mh_ticket",
        "access_token",
        "X-Subject-Token",
        "client-secret",
        "db.password",
        "luks_passphrase",
        "image_dek",
    ],
)
def test_members_by_the_last_word_of_their_name(name: str) -> None:
    assert redact({name: {"x": "hunter2"}}) == {name: "***"}


@pytest.mark.parametrize(
    "name", ["key_id", "ticket_id", "tokens_left", "x", "kid", "digest"]
)
def test_members_that_are_no_secrets(name: str) -> None:
    assert redact({name: "value"}) == {name: "value"}


def test_a_private_key() -> None:
    found = redact({"keys": [KEY]})
    assert KEY["d"] not in repr(found)
    assert found["keys"][0]["x"] == KEY["x"]


@pytest.mark.parametrize(
    "value",
    [
        DATA,
        bytearray(DATA),
        memoryview(DATA),
        Secret(DATA),
        [DATA],
        (DATA,),
        {"a": DATA},
        {1: [Secret(DATA)]},
        types.MappingProxyType({"password": "hunter2", "a": DATA}),
        {"a": {"b": [{"c": JWE}]}},
        {JWE: 1},
        [JWT],
        frozenset([JWT]),
        ValueError(JWT),
        f"Bearer {TEXT}",
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_are_secrets(value: Any) -> None:
    found = repr(redact(value))
    assert "***" in found
    for text in (TEXT, "hunter2", JWE[-20:], JWT[-20:], "eyJ"):
        assert text not in found


@pytest.mark.parametrize(
    "text",
    [
        "got {} from a peer",
        "{}",
        "'{}'",
        '{"x":"{}"}',
        "x={}&y=1",
        "x-{}",
        "x_{}",
        "a.b.c.{}",
        "https://host/{}?a",
        "\u00e9{}\u00e9",
    ],
)
@pytest.mark.parametrize("token", [JWE, JWT], ids=["jwe", "jwt"])
def test_tokens_in_a_text(text: str, token: str) -> None:
    assert redact(text.replace("{}", token)) == text.replace("{}", "***")


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer {}",
        "authorization: bearer   {}",
        "Basic {}",
        "dek={}",
        "DEK: {}",
        '"key": "{}"',
        "'passphrase': '{}'",
        "secret = b'{}'",
        "ticket={}",
        "mh_ticket: {}",
        "X-Auth-Token: {}",
        "password={}",
        "password: {}",
        "'password': '{}'",
        '"password": "{}"',
        "postgresql://user:{}@db/kms",
        "https://:{}@host",
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
        "-----BEGIN EC PRIVATE KEY-----\n{}",
    ],
)
def test_keys_and_passwords_in_a_text(text: str) -> None:
    assert TEXT not in redact(text.format(TEXT))
    assert TEXT not in redact([text.format(TEXT)])[0]


@pytest.mark.parametrize("text", ["password='{}'", "mysql://u:{}@h/d"])
def test_short_passwords(text: str) -> None:
    assert "hunter2" not in redact(text.format("hunter2"))


@pytest.mark.parametrize(
    "text",
    [
        "the key 4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10 is not known",
        "digest " + "ab" * 32,
        "https://kms.test:15543/v1/keys/4f0c6a52",
        "bearer",
        "kms.release.granted",
        "2026-01-01T00:00:00Z node1: started",
    ],
)
def test_texts_without_secrets_stay(text: str) -> None:
    assert redact(text) == text


def test_numbers_and_the_like_stay() -> None:
    value = {"a": 1, "b": None, "c": True, "d2": 1.5, "e": []}
    assert redact(value) == value


def test_the_document_itself_is_left_alone() -> None:
    document = {"dek": TEXT, "a": [JWE]}
    redact(document)
    assert document == {"dek": TEXT, "a": [JWE]}


def test_depth_does_not_end_in_recursion() -> None:
    deep: Any = TEXT
    for number in range(5000):
        deep = {"a": deep} if number % 2 else [deep]
    assert TEXT not in repr(redact(deep))
    ring: list[Any] = []
    ring.append(ring)
    redact(ring)


@pytest.mark.parametrize(
    "piece",
    [
        "eyJ-",
        "eyJ",
        "eyJ.",
        "a.",
        "bearer ",
        "key",
        "key=",
        "password ",
        "password=",
        "password'",
        "://a:",
        "://",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----",
        " ",
    ],
)
def test_time_is_linear_in_hostile_text(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    start = time.process_time()
    redact(text)
    assert time.process_time() - start < 2


@given(
    st.recursive(
        st.none()
        | st.integers()
        | st.binary(max_size=9)
        | st.text(st.characters(exclude_categories=()), max_size=20)
        | st.just(Secret(DATA))
        | st.sampled_from([JWE, JWT]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*sorted(SENSITIVE), "a", "b"]) | st.text(),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    )
)
def test_redacting_any_document(document: Any) -> None:
    found = repr(redact(document))
    assert JWE not in found
    assert JWT not in found
    assert redact(redact(document)) == redact(document)


# -- logging -----------------------------------------------------------------


class Log:
    """A logger of its own, and what came out of it."""

    def __init__(self, formatter: logging.Formatter | None = None) -> None:
        self._stream = io.StringIO()
        self.handler = logging.StreamHandler(self._stream)
        self.handler.setFormatter(formatter)
        self.logger = logging.Logger("mh.test")  # noqa: LOG001
        self.logger.addHandler(self.handler)

    @property
    def text(self) -> str:
        return self._stream.getvalue()


@pytest.fixture(params=["filter", "protect"])
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    found = Log()
    if request.param == "filter":
        found.handler.addFilter(RedactFilter())
    else:
        protect(found.handler)
    yield found
    found.handler.close()


def test_messages_and_arguments(log: Log) -> None:
    log.logger.info("a %s", JWE)
    log.logger.info("b %r", {"dek": "hunter2", "x": [{"password": "hunter2"}]})
    log.logger.info("c %(password)s %(x)s", {"password": "hunter2", "x": "y"})
    log.logger.info("d %s %s", DATA, [DATA])
    log.logger.info("e %s", Secret(DATA))
    log.logger.info(ValueError(JWT))
    log.logger.info("f " + JWT)  # noqa: G003
    log.logger.info("g %d%% %5.1f", 5, 1.25)
    for text in (JWE, JWT, TEXT, "hunter2", "0123"):
        assert text not in log.text
    assert "c *** y" in log.text
    assert "g 5%   1.2" in log.text
    assert len(log.text.splitlines()) == 8


def test_exceptions(log: Log) -> None:
    try:
        try:
            raise KeyError(f"Bearer {TEXT}")
        except KeyError as exc:
            raise ValueError(f"token {JWT}") from exc
    except ValueError:
        log.logger.exception("failed with %s", JWE)
    assert "ValueError: token ***" in log.text
    assert "KeyError: 'Bearer ***'" in log.text
    assert "test_secret.py" in log.text
    for text in (JWE, JWT, TEXT):
        assert text not in log.text


def test_exceptions_in_every_handler(log: Log) -> None:
    """What one handler's formatter keeps, another one's would print."""
    plain = Log()
    plain.handler.addFilter(RedactFilter())
    log.logger.handlers.insert(0, plain.handler)
    try:
        raise ValueError(JWT)
    except ValueError:
        log.logger.exception("x")
    assert JWT not in plain.text + log.text
    assert "ValueError: ***" in plain.text
    assert "ValueError: ***" in log.text


def test_a_formatter_that_formats_exceptions_afresh() -> None:
    """As those of oslo.log do, whatever text the record has already."""

    class Afresh(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            if record.exc_info:
                record.exc_text = self.formatException(record.exc_info)
            return super().format(record)

    log = Log(Afresh())
    log.handler.addFilter(RedactFilter())
    try:
        raise ValueError(JWT)
    except ValueError:
        log.logger.exception("x")
    assert JWT not in log.text
    assert "ValueError: ***" in log.text


def test_stacks(log: Log) -> None:
    log.logger.warning("x", stack_info=True)
    assert "test_stacks" in log.text
    record = logging.LogRecord("a", logging.INFO, "b", 1, "c", (), None)
    record.stack_info = f"call({JWT!r})"
    assert RedactFilter().filter(record)
    assert record.stack_info == "call('***')"


def test_a_message_that_cannot_be_formatted(log: Log) -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError(TEXT)

    log.logger.info("%d", "x")
    log.logger.info("%s %s", "x")
    log.logger.info("%s", Bad())
    log.logger.info(Bad())
    assert log.text.count("a log message that cannot be formatted") == 4
    assert TEXT not in log.text


def test_a_level_that_is_not_logged_costs_nothing(log: Log) -> None:
    class Bad:
        def __str__(self) -> str:
            raise AssertionError("printed")

    log.logger.setLevel(logging.INFO)
    log.logger.debug("%s", Bad())
    assert log.text == ""


def test_the_summary_that_oslo_log_appends() -> None:
    """It comes from the exception being handled, and past every filter."""
    config = cfg.ConfigOpts()
    config([])
    config.register_opts(
        [
            cfg.StrOpt("logging_context_format_string", default="%(message)s"),
            cfg.StrOpt("logging_default_format_string", default="%(message)s"),
            cfg.StrOpt("logging_exception_prefix", default=""),
            cfg.StrOpt("logging_debug_format_suffix", default=""),
            cfg.StrOpt("logging_user_identity_format", default=""),
            cfg.StrOpt("log_date_format", default="%H"),
        ]
    )
    log = Log(formatters.ContextFormatter(config=config))
    protect(log.handler)
    protect(log.handler)
    assert len(log.handler.filters) == 1
    assert isinstance(log.handler.formatter, RedactFormatter)
    try:
        raise RuntimeError(JWT)
    except RuntimeError:
        log.logger.error("one")
        log.logger.exception("two")
    assert "one" in log.text
    assert "RuntimeError: ***" in log.text
    assert JWT not in log.text


def test_a_record_may_be_filtered_twice() -> None:
    record = logging.LogRecord(
        "a", logging.INFO, "b", 1, "%s", (JWE,), sys.exc_info()
    )
    found = RedactFilter()
    assert found.filter(record)
    assert found.filter(record)
    assert record.getMessage() == "***"


def test_key_bytes_in_base64url_after_their_name() -> None:
    assert b64u(DATA) not in redact(f"overlay_key: {b64u(DATA)}")

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

"""Whatever the bytes, only errors of this project come out."""

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_core import errors
from mh_core.tpm import attest as attest_module
from mh_core.tpm import build, ekcert, eventlog, quote, reader
from mh_core.tpm import constants as c
from mh_core.tpm.public import Public
from tests.unit.mh_core.tpm import vectors

QUICK = settings(max_examples=150, deadline=None)


def _good(name: str, field: str) -> list[bytes]:
    found = {
        bytes.fromhex(case[field])
        for case in vectors.load(name)
        if case["expect"] == "ok" and field in case
    }
    return sorted(found, key=len)


def _log(data: bytes) -> None:
    events = eventlog.parse(data)
    eventlog.replay(events)
    eventlog.command_lines(events)


def _public(data: bytes) -> None:
    key = Public.parse(data)
    assert key.raw == data
    key.name, key.pem(), key.jwk()


def _certificate(data: bytes) -> None:
    case = vectors.load("ekcert")[0]
    ekcert.verify_ek_certificate(
        ekcert.load_certificate(data),
        Public.parse(bytes.fromhex(case["ek"])),
        [ekcert.load_certificate(case["intermediates"][0].encode())],
        [ekcert.load_certificate(case["roots"][0].encode())],
        _NOW,
    )


_NOW = datetime.datetime.fromisoformat(vectors.load("ekcert")[0]["now"])
PARSERS: list[tuple[Callable[[bytes], Any], list[bytes]]] = [
    (_public, _good("public", "public")),
    (attest_module.Attest.parse, _good("quote", "attest")),
    (attest_module.Attest.parse, _good("certify", "attest")),
    (_log, _good("eventlog", "log")),
    (_certificate, _good("ekcert", "certificate")[:2]),
    (reader.unwrap, [b"\0\2ab"]),
]
PARSERS_IDS = ["public", "quote", "certify", "log", "certificate", "tpm2b"]
EACH = pytest.mark.parametrize(("parse", "good"), PARSERS, ids=PARSERS_IDS)


@EACH
@QUICK
@given(data=st.binary(max_size=400))
def test_arbitrary_bytes(
    parse: Callable[[bytes], Any], good: list[bytes], data: bytes
) -> None:
    vectors.outcome(parse, data)


@EACH
@QUICK
@given(data=st.data())
def test_one_octet_changed(
    parse: Callable[[bytes], Any], good: list[bytes], data: st.DataObject
) -> None:
    start = bytearray(data.draw(st.sampled_from(good)))
    at = data.draw(st.integers(0, len(start) - 1))
    start[at] ^= data.draw(st.integers(1, 255))
    vectors.outcome(parse, bytes(start))


@EACH
@QUICK
@given(data=st.data())
def test_truncated(
    parse: Callable[[bytes], Any], good: list[bytes], data: st.DataObject
) -> None:
    start = data.draw(st.sampled_from(good))
    size = data.draw(st.integers(0, len(start) - 1))
    # A log cut between two events is a shorter log; its PCRs differ.
    if vectors.outcome(parse, start[:size]) == "ok":
        assert parse is _log


@QUICK
@given(data=st.data())
def test_changed_quote_never_verifies(data: st.DataObject) -> None:
    case = vectors.load("quote")[data.draw(st.integers(0, 2))]
    field = data.draw(st.sampled_from(["ak", "attest", "signature", "extra"]))
    parts = {
        name: bytearray.fromhex(case[name])
        for name in ("ak", "attest", "signature", "extra")
    }
    at = data.draw(st.integers(0, len(parts[field]) - 1))
    parts[field][at] ^= data.draw(st.integers(1, 255))
    try:
        ak = Public.parse(bytes(parts["ak"]))
        quote.verify_quote(
            ak,
            bytes(parts["attest"]),
            bytes(parts["signature"]),
            bytes(parts["extra"]),
            vectors.pcrs(case),
            case["selection"],
        )
    except errors.MHError:
        return
    # The key alone verifies: another policy or unlike attribute names
    # another object, which credential activation refuses.
    assert field == "ak"
    assert ak.name != Public.parse(bytes.fromhex(case["ak"])).name


@QUICK
@given(signature=st.binary(max_size=80))
def test_arbitrary_signature(signature: bytes) -> None:
    ak = vectors.SoftwareAk().public
    for head in (b"", b"\0\x18\0\x0b", b"\0\x18\0\x0b\0\x20"):
        got = vectors.outcome(
            attest_module.verify_signature, ak, b"message", head + signature
        )
        assert got != "ok"


@QUICK
@given(
    events=st.lists(
        st.tuples(
            st.integers(0, 23),
            st.sampled_from([eventlog.EV_IPL, eventlog.EV_SEPARATOR, 3]),
            st.binary(max_size=40),
        ),
        max_size=8,
    )
)
def test_log_round_trip(events: list[tuple[int, int, bytes]]) -> None:
    parsed = eventlog.parse(eventlog.build(events))
    assert [(e.pcr, e.type, e.data) for e in parsed] == events
    assert all(e.authentic for e in parsed if e.type != 3)


def test_bounds() -> None:
    many = eventlog.build([(0, 1, b"")] * (eventlog.MAX_EVENTS + 1))
    assert vectors.outcome(eventlog.parse, many) == "core.tpm.eventlog.count"
    long = bytes(eventlog.MAX_LOG + 1)
    assert vectors.outcome(eventlog.parse, long) == "core.tpm.reader.size"
    for value in (bytes(reader.MAX_STRUCTURE + 1), b"\xff\xff" + bytes(9)):
        assert vectors.outcome(reader.unwrap, value) == "core.tpm.reader.size"
    for value in (7, "text", None):
        got = vectors.outcome(Public.parse, value)
        assert got == "core.tpm.reader.type"
    assert vectors.outcome(reader.pack, "H", 1 << 16) == "core.tpm.pack"
    assert vectors.outcome(ekcert.load_certificate, bytes(16385)) == (
        "core.tpm.ekcert.parse"
    )
    assert vectors.outcome(eventlog.build, [(-1, 1, b"")]) == (
        "core.tpm.eventlog.event"
    )


def test_attest_round_trip() -> None:
    message = build.attest(
        c.ST_CERTIFY, b"x", build.certify_body(b"n", b"q"), signer=b"s"
    )
    got = attest_module.Attest.parse(message)
    assert (got.extra, got.name, got.qualified_name) == (b"x", b"n", b"q")
    assert got.qualified_signer == b"s"

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

"""Base64url, digests and JSON."""

import base64
import json
import sys

import pytest
from hypothesis import strategies as st

from mh_core import encoding
from mh_core.encoding import b64u, canonical_json, parse_json, unb64u
from mh_core.errors import InputError
from tests.unit.mh_core.vectors import given, outcome


@given(st.binary())
def test_base64url_is_that_of_the_standard_library(data: bytes) -> None:
    text = b64u(data)
    assert base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) == data
    assert unb64u(text) == data


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AA==",
        "AA=",
        "AB",
        "AAB",
        "+A",
        "/A",
        " AA",
        "AA\n",
        "A A",
        "AA.AA",
        "\u00e9\u00e9",
        "\uff21\uff21",
        "\ud800",
        "A\0",
    ],
)
def test_base64url_that_is_not_canonical(text: str) -> None:
    with pytest.raises(InputError) as caught:
        unb64u(text, "core.test")
    assert caught.value.event == "core.test"


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_any_text_is_canonical_base64url_or_refused(text: str) -> None:
    if outcome(unb64u, text) == "ok":
        assert b64u(unb64u(text)) == text


@given(
    st.lists(st.binary(max_size=4), max_size=4),
    st.lists(st.binary(max_size=4), max_size=4),
)
def test_digests_of_different_parts_differ(
    one: list[bytes], other: list[bytes]
) -> None:
    same = encoding.labelled_digest("l", one) == encoding.labelled_digest(
        "l", other
    )
    assert same == (one == other)


def test_a_digest_is_of_its_label() -> None:
    # a label is no part, and a part no label
    assert encoding.labelled_digest("a", [b"b"]) != encoding.labelled_digest(
        "ab", []
    )
    assert encoding.labelled_digest("a", []) != encoding.labelled_digest(
        "b", []
    )


_DOCUMENT = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(_DOCUMENT)
def test_json_is_read_as_it_was_written(document: object) -> None:
    data = canonical_json(document)
    assert parse_json(data) == document
    assert canonical_json(parse_json(data)) == data
    assert parse_json(json.dumps(document, indent=1).encode()) == document


@pytest.mark.parametrize(
    ("data", "event"),
    [
        (b'{"a":1,"a":1}', "duplicate"),
        (b'[{"b":{"a":1,"\\u0061":2}}]', "duplicate"),
        (b"1.0", "number"),
        (b"1e2", "number"),
        (b"1E400", "number"),
        (b"-0.0", "number"),
        (b'{"a":NaN}', "number"),
        (b"Infinity", "number"),
        (b"-Infinity", "number"),
        (b"1" * 5000, "syntax"),
        (b"-" + b"1" * 5000, "syntax"),
        (b"", "syntax"),
        (b" ", "syntax"),
        (b"{} {}", "syntax"),
        (b"{}\0", "syntax"),
        (b"\0", "syntax"),
        (b"{'a':1}", "syntax"),
        (b'{"a":1,}', "syntax"),
        (b'"\t"', "syntax"),
        (b'"\\x"', "syntax"),
        (b"01", "syntax"),
        (b"+1", "syntax"),
        (b"nul", "syntax"),
        (b"\xff", "syntax"),
        (b'"\xed\xa0\x80"', "syntax"),
        (b"\xef\xbb\xbf{}", "syntax"),
        ("{}".encode("utf-16"), "syntax"),
        ("{}".encode("utf-32"), "syntax"),
        (b'"\\ud800"', "syntax"),
        (b'"\\uDFFF"', "syntax"),
        (b'{"\\ud800":1}', "syntax"),
        (b'[["\\udc00\\ud800"]]', "syntax"),
        (b"[" * 33 + b"]" * 33, "depth"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "depth"),
        (b"[" * 900 + b"]" * 900, "depth"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_json_that_is_refused(data: bytes, event: str) -> None:
    assert outcome(parse_json, data) == f"core.json.{event}"


@pytest.mark.parametrize("bomb", [b"[", b'{"a":', b'[{"a":[', b'{"a":1,"b":'])
def test_depth_bombs(bomb: bytes) -> None:
    data = bomb * (encoding.MAX_JSON // len(bomb))
    assert outcome(parse_json, data) in ("core.json.syntax", "core.json.depth")


def test_a_depth_bomb_deep_in_the_stack() -> None:
    def deep(left: int) -> str:
        return deep(left - 1) if left else outcome(parse_json, b"[" * 5000)

    assert deep(sys.getrecursionlimit() // 2) == "core.json.syntax"


def test_what_is_just_allowed() -> None:
    depth = encoding.MAX_DEPTH
    assert parse_json(b"[" * depth + b"]" * depth)
    assert parse_json(b"1" * 4000) == int("1" * 4000)
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"
    assert parse_json(b'"\\\\ud800"') == "\\ud800"
    assert parse_json(b"-0") == 0


def test_the_size_is_looked_at_first() -> None:
    assert parse_json(b"[]      ", 8) == []
    assert outcome(parse_json, b"[]       ", 8) == "core.json.size"
    assert outcome(parse_json, b"\xff" * 9, 8) == "core.json.size"
    large = b" " * (encoding.MAX_JSON + 1)
    assert outcome(parse_json, large) == "core.json.size"


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_json_or_refused(data: bytes) -> None:
    found = outcome(parse_json, data)
    assert found == "ok" or found.startswith("core.json.")

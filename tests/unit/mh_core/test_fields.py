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

"""Every accessor of Fields: the right value, and all the wrong ones."""

import unicodedata
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from mh_core.errors import InputError
from mh_core.fields import DIGEST, LINE, Fields, text_item
from tests.unit.mh_core.vectors import given, outcome

EVENT = "core.test"
UUID = "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10"

ACCESSORS: dict[str, tuple[Callable[[Fields], Any], Any, list[Any]]] = {
    # name: accessor, a good value, bad values of the right type
    "text": (
        lambda f: f.text("a", minimum=1, maximum=3),
        "abc",
        ["", "abcd", "\0", "\x1b", "\r", "\x7f", "\x85", "\u2028", "\u202e"],
    ),
    "pattern": (
        lambda f: f.text("a", pattern="[a-z]+"),
        "abc",
        ["", "ABC", "abc\n", "a\nb", " abc", "\uff41"],
    ),
    "line": (lambda f: f.text("a", pattern=LINE), "a b", ["a\n", "a\tb"]),
    "digest": (
        lambda f: f.text("a", pattern=DIGEST),
        "12" * 32,
        ["12" * 31, "AB" * 32, "12" * 32 + "\n"],
    ),
    "choice": (lambda f: f.choice("a", ("x", "y")), "x", ["", "X", "x,y"]),
    "integer": (lambda f: f.integer("a", 1, 5), 5, [0, 6, -1, 10**4000]),
    "boolean": (lambda f: f.boolean("a"), False, []),
    "uuid": (
        lambda f: f.uuid("a"),
        UUID,
        [
            "",
            UUID.upper(),
            UUID.replace("-", ""),
            "{" + UUID + "}",
            "urn:uuid:" + UUID,
            UUID + "\n",
            UUID[:-1] + "g",
            UUID[:-1] + "\u0660",
            UUID + UUID,
        ],
    ),
    "hex": (
        lambda f: f.hex("a", 2),
        "00ff",
        ["", "00FF", "00f", "00ff00", "0x00", "00 ff", "00ff\n", "\uff10" * 4],
    ),
    "hex-any": (lambda f: f.hex("a", maximum=2), "", ["001122", "0", "zz"]),
    "b64u": (
        lambda f: f.b64u("a", 2),
        "AAA",
        ["", "AA", "AAAA", "AAB", "AAA=", "A+A", "\u00e9AA"],
    ),
    "b64u-any": (
        lambda f: f.b64u("a", maximum=3),
        "",
        ["A" * 9, "A" * 1000, "="],
    ),
    "object": (lambda f: f.object("a"), {"b": 1}, []),
    "list": (
        lambda f: f.list("a", text_item(EVENT, 3), 2),
        ["abc"],
        [["", "a"], ["abcd"], ["a"] * 3, [1], [None], [["a"]], ["\x1b"]],
    ),
}
#: What is read where it is not the value itself.
READ: dict[str, Any] = {
    "hex": b"\0\xff",
    "hex-any": b"",
    "b64u": b"\0\0",
    "b64u-any": b"",
    "list": ("abc",),
}
WRONG = [None, 1, 1.5, "a\0", b"abc", True, [], {}, [1], {"b": 1}, ("a",)]


@pytest.mark.parametrize("name", ACCESSORS)
def test_a_good_value(name: str) -> None:
    accessor, good, _bad = ACCESSORS[name]
    fields = Fields({"a": good}, EVENT)
    assert fields.has("a")
    assert accessor(fields) == READ.get(name, good)
    assert not fields.has("a")
    fields.end()


@pytest.mark.parametrize("name", ACCESSORS)
def test_bad_values(name: str) -> None:
    accessor, good, bad = ACCESSORS[name]
    kind = type(good)
    others = [one for one in WRONG if type(one) is not kind]
    assert others
    for value in [*bad, *others]:
        found = outcome(accessor, Fields({"a": value}, EVENT))
        assert found == EVENT, value


@pytest.mark.parametrize("name", ACCESSORS)
def test_a_missing_member(name: str) -> None:
    accessor, _good, _bad = ACCESSORS[name]
    assert outcome(accessor, Fields({}, EVENT)) == EVENT
    assert outcome(accessor, Fields({"A": 1}, EVENT)) == EVENT


@pytest.mark.parametrize("name", ACCESSORS)
def test_a_member_is_taken_once(name: str) -> None:
    accessor, good, _bad = ACCESSORS[name]
    fields = Fields({"a": good}, EVENT)
    accessor(fields)
    assert outcome(accessor, fields) == EVENT


def test_truth_is_no_number_and_numbers_are_no_truth() -> None:
    for value in (True, False):
        fields = Fields({"a": value}, EVENT)
        assert outcome(fields.integer, "a", 0, 1) == EVENT
    for number in (0, 1):
        fields = Fields({"a": number}, EVENT)
        assert outcome(fields.boolean, "a") == EVENT


def test_defaults() -> None:
    fields = Fields({}, EVENT)
    assert fields.text("a", default="") == ""
    assert fields.choice("a", ("x",), "x") == "x"
    assert fields.integer("a", 1, 2, 1) == 1
    assert fields.boolean("a", False) is False
    assert fields.uuid("a", "") == ""
    assert fields.object("a", {}) == {}
    assert fields.list("a", str, 1, ()) == ()
    fields.end()


def test_null_is_not_a_missing_member() -> None:
    fields = Fields({"a": None}, EVENT)
    assert outcome(fields.text, "a", default="") == EVENT


def test_newlines_and_tabs_are_text() -> None:
    pem = "-----BEGIN X-----\nAA\n-----END X-----\n\t"
    assert Fields({"a": pem}, EVENT).text("a") == pem


@pytest.mark.parametrize("value", WRONG)
def test_only_an_object_has_fields(value: Any) -> None:
    found = outcome(Fields, value, EVENT)
    assert found == ("ok" if isinstance(value, dict) else EVENT)


def test_an_unknown_member() -> None:
    fields = Fields({"a": "x", "b": "y"}, EVENT)
    fields.text("a")
    with pytest.raises(InputError, match="'b'"):
        fields.end()


def test_the_name_of_an_unknown_member_is_cut_and_escaped() -> None:
    name = "\x1b[2J\ud800" + "x" * 10_000
    with pytest.raises(InputError) as caught:
        Fields({name: 1}, EVENT).end()
    assert len(caught.value.message) < 200
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()


def test_no_refusal_repeats_the_value() -> None:
    for accessor, _good, _bad in ACCESSORS.values():
        fields = Fields({"a": "hunter2-hunter2"}, EVENT)
        if outcome(accessor, fields) != "ok":
            with pytest.raises(InputError) as caught:
                accessor(Fields({"a": "hunter2-hunter2"}, EVENT))
            assert "hunter2" not in str(caught.value)


def test_the_callers_document_is_left_alone() -> None:
    document = {"a": "x"}
    Fields(document, EVENT).text("a")
    assert document == {"a": "x"}


@given(st.text(st.characters(exclude_categories=()), max_size=50))
def test_no_control_character_passes(value: str) -> None:
    if outcome(Fields({"a": value}, EVENT).text, "a") == "ok":
        value.encode()
        kinds = {unicodedata.category(c) for c in value if c not in "\n\t"}
        assert not kinds & {"Cc", "Cs", "Zl", "Zp"}


@given(st.uuids())
def test_every_uuid_is_one(value: uuid.UUID) -> None:
    assert Fields({"a": str(value)}, EVENT).uuid("a") == str(value)


@given(
    st.sampled_from(sorted(ACCESSORS)),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.binary(max_size=5)
        | st.text(st.characters(exclude_categories=()), max_size=50),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=5,
    ),
)
def test_any_value_is_taken_or_refused(name: str, value: Any) -> None:
    found = outcome(ACCESSORS[name][0], Fields({"a": value}, EVENT))
    assert found in ("ok", EVENT)

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

"""Key requests: what is read, and that the digest covers all of it."""

import dataclasses
from typing import Any

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from mh_core import volume
from mh_core.encoding import canonical_json, parse_json
from mh_core.request import ATTACH, PURPOSES, Disk, KeyRequest
from tests.unit.mh_core import vectors
from tests.unit.mh_core.vectors import given, outcome

_UUIDS = st.uuids().map(str)
_NAMES = st.from_regex(r"[A-Za-z0-9._\-]{1,64}", fullmatch=True)
_TEXTS = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Cf")),
    max_size=64,
)
_OTHERS = st.builds(
    KeyRequest,
    key_id=_UUIDS,
    kms_origin=st.from_regex(r"https?://[a-z0-9.\-]{1,40}", fullmatch=True),
    purpose=st.sampled_from([one for one in PURPOSES if one != ATTACH]),
    instance=_UUIDS,
    project=_TEXTS,
    user=_TEXTS,
    host=_NAMES,
    image=_UUIDS,
    manifest_digest=st.binary(min_size=32, max_size=32).map(bytes.hex),
    disks=st.lists(
        st.builds(Disk, _NAMES, _UUIDS),
        max_size=3,
        unique_by=lambda disk: disk.name,
    ).map(tuple),
    ticket=st.from_regex(r"[A-Za-z0-9_\-]{0,64}", fullmatch=True),
)
_VOLUMES = st.lists(_UUIDS, min_size=1, max_size=3, unique=True).map(
    lambda names: tuple(volume.wanted(name) for name in names)
)
REQUESTS = _OTHERS | st.builds(
    lambda request, disks: dataclasses.replace(
        request, purpose=ATTACH, ticket="", disks=disks
    ),
    _OTHERS,
    _VOLUMES,
)
FIELDS = [field.name for field in dataclasses.fields(KeyRequest)]
TEXTS = [name for name in FIELDS if name != "disks"]
GOOD = vectors.load("core/digest")[0]["document"]


@given(REQUESTS)
def test_what_is_written_is_read(request: KeyRequest) -> None:
    document = parse_json(canonical_json(request.to_dict()))
    again = KeyRequest.parse(document)
    assert again == request
    assert again.to_dict() == document
    assert again.digest() == request.digest()


def test_the_digest_is_that_of_openssl() -> None:
    case = vectors.load("core/digest")[0]
    assert KeyRequest.parse(GOOD).digest().hex() == case["digest"]


@given(REQUESTS, REQUESTS, st.sampled_from(FIELDS))
def test_the_digest_covers_every_field(
    request: KeyRequest, other: KeyRequest, name: str
) -> None:
    value = getattr(other, name)
    assume(value != getattr(request, name))
    changed = dataclasses.replace(request, **{name: value})
    assert changed.digest() != request.digest()


@given(REQUESTS, REQUESTS)
def test_digests_of_different_requests_differ(
    one: KeyRequest, other: KeyRequest
) -> None:
    assert (one.digest() == other.digest()) == (one == other)


@given(REQUESTS, st.sampled_from(TEXTS), st.sampled_from(TEXTS), st.data())
def test_characters_do_not_move_between_fields(
    request: KeyRequest, giver: str, taker: str, data: st.DataObject
) -> None:
    given_, taken = getattr(request, giver), getattr(request, taker)
    assume(giver != taker and given_)
    count = data.draw(st.integers(1, len(given_)))
    for moved in (
        {giver: given_[:-count], taker: given_[-count:] + taken},
        {giver: given_[count:], taker: taken + given_[:count]},
    ):
        changed = dataclasses.replace(request, **moved)
        assert changed.digest() != request.digest()


@given(REQUESTS, st.data())
def test_the_digest_covers_the_disks(
    request: KeyRequest, data: st.DataObject
) -> None:
    assume(request.disks)
    disk = request.disks[0]
    last = request.disks[-1]
    for disks in (
        request.disks[1:],
        (*request.disks, Disk("another", disk.luks_uuid)),
        (Disk(disk.name + "x", disk.luks_uuid), *request.disks[1:]),
        (Disk(disk.name, last.luks_uuid + "x"), *request.disks[1:]),
        (Disk(disk.luks_uuid, disk.name), *request.disks[1:]),
    ):
        changed = dataclasses.replace(request, disks=disks)
        assert changed.digest() != request.digest()
    swapped = request.disks[::-1]
    changed = dataclasses.replace(request, disks=swapped)
    assert (changed.digest() == request.digest()) == (swapped == request.disks)


def test_a_disk_and_the_ticket_do_not_pass_for_each_other() -> None:
    one = KeyRequest.parse({**GOOD, "disks": [], "ticket": "a"})
    for ticket in ("", "a0", "1", "a1"):
        other = dataclasses.replace(
            one, ticket=ticket, disks=(Disk("disk", one.instance),)
        )
        assert other.digest() != one.digest()


BAD: dict[str, list[Any]] = {
    "key_id": ["", "x", GOOD["key_id"].upper(), None],
    "kms_origin": [
        "",
        "kms.test",
        "ftp://a",
        "https://",
        "https://a/b",
        "https://a b",
        "https://user@a",
        "https://a?b",
        "https://a#b",
        "https://a\n",
        "https://" + "a" * 241,
        "HTTPS://a",
        "https://\u00e9",
    ],
    "purpose": ["", "Launch", "launch,start", None, True],
    "instance": ["", GOOD["instance"] + " "],
    "project": ["p" * 65, "\0", "a\nb", "\ud800", "\u202e", 1],
    "user": ["u" * 65, "\x1b[2J", "a\tb", "\udfff", None],
    "host": ["", "a b", "a" * 256, "a/b", "\u00e9", "a\n"],
    "image": ["latest", 1],
    "manifest_digest": ["", "12" * 31, "AB" * 32, "12" * 33],
    "ticket": ["=", "a" * 65, "a.b", None],
    "disks": [
        None,
        {},
        "disk",
        [1],
        [None],
        [{}],
        [{"name": "disk"}],
        [{"name": "disk", "luks_uuid": "x"}],
        [{"name": "", "luks_uuid": GOOD["image"]}],
        [{"name": "../disk", "luks_uuid": GOOD["image"]}],
        [{"name": "d" * 65, "luks_uuid": GOOD["image"]}],
        [{"name": "disk", "luks_uuid": GOOD["image"], "path": "/"}],
        [{"name": "disk", "luks_uuid": GOOD["image"]}] * 2,
        [
            {"name": f"disk{number}", "luks_uuid": GOOD["image"]}
            for number in range(17)
        ],
    ],
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_wrong_or_missing(name: str) -> None:
    assert BAD[name]
    for value in BAD[name]:
        found = outcome(KeyRequest.parse, {**GOOD, name: value})
        assert found in ("core.request", "core.request.disk"), value
    without = {key: value for key, value in GOOD.items() if key != name}
    assert outcome(KeyRequest.parse, without) == "core.request"


def test_a_member_that_is_not_known() -> None:
    assert outcome(KeyRequest.parse, {**GOOD, "tenant": "x"}) == "core.request"

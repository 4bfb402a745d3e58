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
"""A volume's key, and the request for it."""

import hmac
import uuid
from typing import Any

import pytest
from hypothesis import strategies as st

from mh_core import volume
from mh_core.errors import InputError
from mh_core.image import luks1
from mh_core.image.overlay import overlay_key
from mh_core.request import PURPOSES, KeyRequest
from tests.unit.mh_core import vectors
from tests.unit.mh_core.vectors import given, outcome

ROOT = bytes(range(1, 33))
VOLUME = uuid.UUID("6f0a3c9e-6f0e-4a53-9d2b-0d9a6f1f1a11")
GOOD = vectors.load("core/digest")[0]["document"]


def request(*volumes: str, **changes: Any) -> dict[str, Any]:
    return {
        **GOOD,
        "purpose": "attach",
        "ticket": "",
        "disks": [volume.wanted(one).to_dict() for one in volumes],
        **changes,
    }


def test_the_key_is_hkdf() -> None:
    # HMAC-SHA256(root, info 01), by hand.
    info = bytes.fromhex(
        "0000000c" + b"mh/volume/v1".hex() + "00000010" + VOLUME.hex
    )
    key = volume.volume_key(ROOT, VOLUME)
    assert key == hmac.digest(ROOT, info + b"\1", "sha256")
    # as doc/source/reference/protocol.rst has it; also printed by
    # openssl dgst -sha256 -mac HMAC -macopt hexkey:0102…20
    assert key.hex() == (
        "cf8c7a42f07787228d310675e510e21bd22fb7fff030164955434ad6e562a1d8"
    )


@given(st.binary(min_size=32, max_size=32), st.uuids(), st.uuids())
def test_keys_of_different_volumes_differ(
    root: bytes, one: uuid.UUID, other: uuid.UUID
) -> None:
    if not any(root):
        return
    key = volume.volume_key(root, one)
    assert (key == volume.volume_key(root, other)) == (one == other)
    assert key != volume.volume_key(root[::-1] + b"", one) or (
        root == root[::-1]
    )


@given(st.uuids(), st.uuids())
def test_no_disk_has_a_volumes_key(
    one: uuid.UUID, instance: uuid.UUID
) -> None:
    name = volume.wanted(str(one)).name
    assert volume.volume_key(ROOT, one) != overlay_key(
        ROOT, instance, name, one
    )


def test_a_root_that_is_none() -> None:
    for root in (b"", bytes(32), ROOT + b"x"):
        with pytest.raises(InputError) as caught:
            volume.volume_key(root, VOLUME)
        assert caught.value.event == "core.image.overlay.root"


def test_the_header_is_as_long_as_it_says() -> None:
    area, _ = luks1.build(
        luks1.passphrase(ROOT),
        VOLUME,
        lambda size: (
            bytes(range(1, 100)) * (size // 99)
            + bytes(range(101, 101 + size % 99))
        ),
        volume.CIPHER_MODE,
    )
    assert len(area) == volume.HEADER_BYTES
    assert luks1.parse(area).size == volume.HEADER_BYTES


def test_a_request_for_volumes() -> None:
    names = [str(uuid.UUID(int=number)) for number in range(1, 27)]
    for count in (1, 26):
        found = KeyRequest.parse(request(*names[:count]))
        assert [disk.luks_uuid for disk in found.disks] == names[:count]


def test_volumes_and_disks_never_in_one_request() -> None:
    one = volume.wanted(str(VOLUME)).to_dict()
    disk = {"name": "disk", "luks_uuid": GOOD["image"]}
    names = [str(uuid.UUID(int=number)) for number in range(1, 28)]
    bad = [
        request(),
        request(*names),
        request(str(VOLUME), str(VOLUME)),
        request(str(VOLUME), ticket="a"),
        request(disks=[disk]),
        request(disks=[one, disk]),
        request(disks=[{**one, "luks_uuid": GOOD["image"]}]),
        request(disks=[{**one, "name": "volume-"}]),
        request(disks=[{**one, "name": "vtpm"}]),
        *(
            request(str(VOLUME), purpose=purpose)
            for purpose in PURPOSES
            if purpose != "attach"
        ),
        request(purpose="start", disks=[disk, one]),
        request(purpose="start", disks=[{**disk, "name": "volume-x"}]),
    ]
    for document in bad:
        assert outcome(KeyRequest.parse, document) == "core.request", document

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

import os
import uuid

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_core import errors
from mh_core.image import afsplit, luks1

KEY = bytes(range(32))
UUID = uuid.UUID("6f9ff7b7-8b1c-4c2e-9d0a-6a6a5d2f0f11")
MODES = {"xts-plain64": 64, "cbc-essiv:sha256": 32}


@pytest.fixture(scope="module", params=sorted(MODES))
def built(request):
    passphrase = luks1.passphrase(KEY)
    area, master = luks1.build(passphrase, UUID, os.urandom, request.param)
    return request.param, area, master


def event(call, *args, **kwargs):
    with pytest.raises(errors.MHError) as caught:
        call(*args, **kwargs)
    return caught.value.event


def test_passphrase():
    assert luks1.passphrase(KEY) == KEY.hex().encode()
    for key in (b"", KEY[:31], KEY + b"x", bytes(32)):
        assert event(luks1.passphrase, key) == "core.image.luks.key"


def test_round_trip(built):
    mode, area, master = built
    header = luks1.parse(area)
    assert header.size == len(area)
    assert header.cipher_mode == mode
    assert header.key_bytes == len(master) == MODES[mode]
    assert header.uuid == UUID
    assert [slot.active for slot in header.slots] == [True] + [False] * 7
    assert luks1.parse(area[:592]) == header
    assert luks1.unlock(area, luks1.passphrase(KEY)) == master


def test_nothing_secret_in_the_clear(built):
    _, area, master = built
    assert master not in area
    assert master[:16] not in area
    assert KEY not in area


def test_wrong_key(built):
    _, area, _ = built
    other = luks1.passphrase(KEY[::-1])
    assert event(luks1.unlock, area, other) == "core.image.luks.passphrase"


def test_damaged_key_material(built):
    _, area, _ = built
    area = bytearray(area)
    area[4096 + 1000] ^= 1
    found = event(luks1.unlock, bytes(area), luks1.passphrase(KEY))
    assert found == "core.image.luks.passphrase"


def test_key_material_cut_off(built):
    _, area, _ = built
    found = event(luks1.unlock, area[:-1], luks1.passphrase(KEY))
    assert found == "core.image.luks.truncated"


def test_given_master_key():
    master = bytes(range(64))
    area, found = luks1.build(b"p", UUID, os.urandom, master_key=master)
    assert found == master == luks1.unlock(area, b"p")


def test_iteration_bound():
    area, _ = luks1.build(b"p", UUID, os.urandom, iterations=2000)
    assert luks1.parse(area, 2000).mk_digest_iterations == 2000
    wrong = "core.image.luks.iterations"
    assert event(luks1.parse, area, 1999) == wrong
    assert event(luks1.unlock, area, b"p", 1999) == wrong


@pytest.mark.parametrize(
    ("changes", "expect"),
    [
        ({"cipher_mode": "ctr-plain64"}, "cipher"),
        ({"iterations": 999}, "iterations"),
        ({"iterations": 100_000_001}, "iterations"),
        ({"passphrase": b""}, "key"),
        ({"master_key": b"x" * 32}, "key"),
        ({"master_key": bytes(64)}, "key"),
        ({"master_key": b"x" * 64}, "key"),
        ({"random": lambda size: bytes(size)}, "key"),
        ({"random": lambda size: b"x" * (size - 1)}, "key"),
    ],
)
def test_build_refuses(changes, expect):
    arguments = {"passphrase": b"p", "luks_uuid": UUID, "random": os.urandom}
    found = event(luks1.build, **arguments | changes)
    assert found == f"core.image.luks.{expect}"


@pytest.mark.parametrize("mode", sorted(MODES))
def test_sector_ciphers_match_the_definition(mode):
    """The whole against one sector computed from the definition."""
    key = os.urandom(MODES[mode])
    data = os.urandom(512 * 5)
    sealed = afsplit.encrypt(mode, key, data)
    assert afsplit.decrypt(mode, key, sealed) == data
    number = (3).to_bytes(16, "little")
    if mode == "xts-plain64":
        chosen = modes.XTS(number)
    else:
        digest = afsplit.hashlib.sha256(key).digest()
        ecb = Cipher(algorithms.AES(digest), modes.ECB())  # noqa: S305
        chosen = modes.CBC(ecb.encryptor().update(number))
    cipher = Cipher(algorithms.AES(key), chosen).encryptor()
    assert sealed[1536:2048] == cipher.update(data[1536:2048])


@given(st.binary(max_size=700))
def test_any_bytes(data):
    for head in (data, b"LUKS\xba\xbe\0\1" + data):
        try:
            luks1.parse(head)
        except errors.MHError:
            pass


HEADER, _ = luks1.build(b"p", UUID, os.urandom)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(0, 588), st.binary(min_size=1, max_size=4)),
        min_size=1,
        max_size=3,
    )
)
def test_mutated_header(edits):
    head = bytearray(HEADER[:592])
    for offset, data in edits:
        head[offset : offset + len(data)] = data
    try:
        found = luks1.parse(bytes(head))
    except errors.MHError:
        return
    assert 0 < found.size <= luks1.MAX_PAYLOAD
    for slot in found.slots:
        end = slot.key_material_offset * 512 + found.key_bytes * slot.stripes
        assert end <= found.size
        assert not slot.active or 1000 <= slot.iterations <= 10_000_000

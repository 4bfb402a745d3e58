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

"""What qemu-img and cryptsetup wrote, and that with bytes edited."""

import base64
import json
import pathlib
import zlib

import pytest

from mh_core import errors
from mh_core.image import identify, luks1, qcow2

DIRECTORY = pathlib.Path(__file__).parents[3] / "vectors" / "image"
VECTORS = sorted(DIRECTORY.glob("*.json"))


def unpack(text):
    return zlib.decompress(base64.b64decode(text))


def judge(vector):
    """(qcow2 header or None, LUKS header); raises the expected error."""
    head = unpack(vector["head"])
    if vector["kind"] == "luks":
        return None, luks1.parse(head)
    header = qcow2.parse(head, vector["file_size"])
    pair = vector["backing"]
    qcow2.check(
        header,
        backing=None if pair is None else tuple(pair),
        virtual_size=vector["facts"].get("virtual_size"),
    )
    return header, luks1.parse(unpack(vector["luks"]))


def test_there_are_vectors():
    assert len(VECTORS) > 80


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vector(path):
    vector = json.loads(path.read_text())
    if vector["expect"] != "ok":
        with pytest.raises(errors.MHError) as caught:
            judge(vector)
        assert caught.value.event == vector["expect"]
        return
    header, luks = judge(vector)
    facts = vector["facts"]
    assert str(luks.uuid) == facts.get("luks_uuid", str(luks.uuid))
    active = [slot for slot in luks.slots if slot.active]
    assert len(active) == 1
    first = active[0].iterations
    assert first == facts.get("luks_iterations", first)
    assert luks.size == facts.get("payload_offset", luks.size)
    kind = identify.kind(unpack(vector["head"]))
    assert kind == vector["kind"]
    if header is not None:
        assert header.luks_length == luks.size

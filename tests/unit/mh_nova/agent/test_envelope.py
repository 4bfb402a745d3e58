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
"""OVF envelopes: ours, the seed's, and hostile ones."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_core.errors import InputError
from mh_glance import encrypt, ova
from mh_nova.agent.envelope import EncryptedFile, read

URL = "https://kms.example/v1/keys/0f1e2d3c-4b5a-4978-8675-645342312011"
OURS = ova.envelope(
    encrypt.Ciphertext("", 512, 4096, "", "", ""), 'a <b> & "c"', URL
)
#: As figure 8-3 of the seed shows it, prefixes and all.
SEED = f"""<?xml version="1.0"?>
<!-- made by hand -->
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
 <ovf:References>
  <ovf:File ovf:id="f1" ovf:href="disk.img" encrypted="true" dekHref="{URL}"/>
 </ovf:References>
</ovf:Envelope>""".encode()


def test_ours() -> None:
    assert read(OURS) == EncryptedFile("disk.qcow2", 512, URL)


def test_the_seeds() -> None:
    assert read(SEED) == EncryptedFile("disk.img", None, URL)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'encrypted="true"', b""),
        (b'encrypted="true"', b'encrypted="yes"'),
        (b"dekHref=", b"dekhref="),
        (b'dekHref="', b'x="'),
        (b"disk.img", b"../disk"),
        (b"disk.img", b"file:///etc/passwd"),
        (b"/envelope/1", b"/envelope/9"),
        (b"<ovf:References>", b"<ovf:References><ovf:File/>"),
        (b"</ovf:Envelope>", b'<x><ovf:File ovf:id="2"/></x></ovf:Envelope>'),
        (b"ovf:References>", b"ovf:Other>"),
        (b"ovf:href=", b'href="disk.img" ovf:href='),
        (b"ovf:id=", b'ovf:compression="gzip" ovf:id='),
        (b"ovf:id=", b'ovf:chunkSize="1" ovf:id='),
        (b"<?xml version=\"1.0\"?>",
         b'<?xml version="1.0"?><!DOCTYPE e [<!ENTITY a "b">]>'),
        (b"<?xml version=\"1.0\"?>",
         b'<!DOCTYPE e SYSTEM "file:///etc/passwd">'),
        (b"</ovf:Envelope>", b""),
    ],
)  # fmt: skip
def test_refused(old: bytes, new: bytes) -> None:
    assert old in SEED
    with pytest.raises(InputError) as caught:
        read(SEED.replace(old, new))
    assert caught.value.event == "agent.unpack.envelope"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_change(data: st.DataObject) -> None:
    text = bytearray(SEED)
    at = data.draw(st.integers(0, len(text) - 1))
    change = data.draw(st.binary(min_size=1, max_size=8))
    text[at : at + len(change)] = change
    event = "agent.unpack.envelope"
    try:
        found = read(bytes(text))
        assert "/" not in found.href
    except InputError as exc:
        event = exc.event
    assert event == "agent.unpack.envelope"

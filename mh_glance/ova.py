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
"""Put an encrypted disk into an OVA, as in the seed's figure 8-3.

Three files: the OVF envelope, whose ``<File>`` has ``encrypted="true"`` and
``dekHref="<key URL>"``, the hashes of the other two, and the disk. The
signed manifest, which hosts go by, names the whole file, the envelope, and
where the disk lies.

Source: DMTF DSP0243 1.1, sections 5.1, 5.3 and 7.
"""

import hashlib
import os
from dataclasses import replace
from xml.sax.saxutils import escape, quoteattr

from mh_core.errors import InputError
from mh_core.image import ova
from mh_core.manifest import Container
from mh_glance.encrypt import Ciphertext, digests
from mh_glance.progress import Progress

EVENT = "client.ova"
DISK = "disk.qcow2"
ENVELOPE = "image.ovf"
_FORMAT = "http://www.gnome.org/~markmc/qcow-image-format.html"
_OVF = """\
<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
          xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>
    <File ovf:id="file1" ovf:href="{disk}" ovf:size="{size}"
          encrypted="true" dekHref={url}/>
  </References>
  <DiskSection>
    <Info>Encrypted disks</Info>
    <Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="{virtual}"
          ovf:format="{form}"/>
  </DiskSection>
  <VirtualSystem ovf:id="vm1">
    <Info>A trusted virtual machine</Info>
    <Name>{name}</Name>
  </VirtualSystem>
</Envelope>
"""


def envelope(disk: Ciphertext, name: str, key_url: str) -> bytes:
    """The OVF envelope.

    :param name: of the image, any text.
    """
    return _OVF.format(
        disk=DISK,
        size=disk.size,
        url=quoteattr(key_url),
        virtual=disk.virtual_size,
        form=_FORMAT,
        name=escape("".join(c if c.isprintable() else " " for c in name)),
    ).encode()


def wrap(
    disk: Ciphertext,
    target: str,
    name: str,
    key_url: str,
    progress: Progress | None = None,
) -> Ciphertext:
    """
    :param disk: a qcow2 of ours; its file goes, the OVA stays.
    :param target: a file that does not exist yet.
    :raises InputError: ``client.ova.file``, ``core.image.ova``.
    """
    text = envelope(disk, name, key_url)
    digest = hashlib.sha256(text).hexdigest()
    hashes = (
        f"SHA256({ENVELOPE})= {digest}\nSHA256({DISK})= {disk.sha256}\n"
    ).encode()
    try:
        with open(target, "xb") as out:
            os.fchmod(out.fileno(), 0o600)
            for file, data in (
                (ENVELOPE, text),
                (ENVELOPE.removesuffix(ova.ENVELOPE) + ova.HASHES, hashes),
            ):
                out.write(ova.header(file, len(data)) + data)
                out.write(ova.padding(len(data)))
            out.write(ova.header(DISK, disk.size))
            offset = out.tell()
            with open(disk.path, "rb") as source:
                while piece := source.read(1 << 20):
                    out.write(piece)
            if out.tell() - offset != disk.size:
                raise InputError(EVENT + ".file", "the disk changed its size")
            out.write(ova.padding(disk.size) + ova.END)
        os.unlink(disk.path)
        with open(target, "rb") as done:
            size = os.fstat(done.fileno()).st_size
            sha256, sha512 = digests(done.fileno(), size, progress)
    except OSError as exc:
        raise InputError(
            EVENT + ".file", f"cannot write the OVA: {exc.strerror}"
        ) from exc
    return replace(
        disk,
        path=target,
        size=size,
        sha256=sha256,
        sha512=sha512,
        container=Container(digest, DISK, offset, disk.size, disk.sha256),
    )

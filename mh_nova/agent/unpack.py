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
"""Taking the disk out of an OVA.

Only after the manifest is verified. Steps, with the id each refuses by:

1. size and SHA-256 of the whole file, as the agent hashed it, are the
   manifest's (``agent.unpack.digest``);
2. it is a plain tar file: an envelope, hashes, and one disk
   (``agent.unpack.files``);
3. the envelope is the one in the manifest, references that disk and no
   other, and marks it as encrypted under the launch's own key
   (``agent.unpack.envelope``, ``agent.unpack.key``);
4. the OVA's own hashes are those of envelope and disk
   (``agent.unpack.hashes``);
5. the disk lies where the manifest says (``agent.unpack.disk``), and what
   was taken out has the manifest's SHA-256 (``agent.unpack.disk-digest``).

What is copied is ciphertext; the OVA itself is removed with its last user.
"""

import hashlib
import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from mh_core.errors import Denied, InputError, MHError
from mh_core.image import ova
from mh_core.manifest import Container, Manifest
from mh_nova.agent import envelope
from mh_nova.agent.hashing import hash_file
from mh_nova.agent.kms import KeyUrl
from mh_nova.agent.measurers.base import HashedFile
from mh_nova.agent.paths import (
    BASE_DIR,
    PART,
    UNPACKED,
    Root,
    base_name,
    open_at,
)

EVENT = "agent.unpack"


def _files(
    image: HashedFile,
) -> tuple[ova.Member, ova.Member, ova.Member]:
    """Step 2: envelope, hashes, disk."""
    found = ova.members(image.fd, image.size)
    disks = ova.disks(found)
    listed = [one for one in found if one.name.endswith(ova.HASHES)]
    if (
        len(found) != 3
        or len(disks) != 1
        or len(listed) != 1
        # DSP0243: the envelope is the first
        or not found[0].name.endswith(ova.ENVELOPE)
    ):
        raise Denied(
            EVENT + ".files",
            "an OVA of ours is an envelope, its hashes and one disk",
        )
    return found[0], listed[0], disks[0]


def _envelope(
    data: bytes, key_url: KeyUrl, container: Container, disk: ova.Member
) -> None:
    """Step 3."""
    if not hmac.compare_digest(
        hashlib.sha256(data).hexdigest(), container.envelope
    ):
        raise Denied(EVENT + ".envelope", "the envelope is not the manifest's")
    file = envelope.read(data)
    if file.href != disk.name or file.size not in (None, disk.size):
        raise Denied(EVENT + ".envelope", "the envelope is of another disk")
    named = KeyUrl.parse(file.key_url)
    if (str(named.origin), named.key_id) != (
        str(key_url.origin),
        key_url.key_id,
    ):
        raise Denied(
            EVENT + ".key", "the envelope names another key than the launch"
        )


def check(manifest: Manifest, key_url: KeyUrl, image: HashedFile) -> Container:
    """Steps 1 to 5, less the digest of what is taken out.

    :param manifest: verified, with a container.
    :param key_url: of the launch.
    :param image: the OVA.
    :raises Denied: as in the module's list.
    """
    container = manifest.container
    if container is None:
        raise Denied(EVENT + ".files", "the manifest is of no OVA")
    # 1
    if image.size != manifest.size or not hmac.compare_digest(
        image.sha256, manifest.sha256
    ):
        raise Denied(
            EVENT + ".digest", "the OVA is not the one its owner signed"
        )
    try:
        # 2
        first, listed, disk = _files(image)
        # 3
        _envelope(ova.text(image.fd, first), key_url, container, disk)
        # 4
        hashes = ova.hashes(ova.text(image.fd, listed))
    except InputError as exc:
        event = exc.event if exc.event.startswith(EVENT) else EVENT + ".files"
        raise Denied(event, f"{exc.message} ({exc.event})") from exc
    if hashes != {
        first.name: container.envelope,
        disk.name: container.sha256,
    }:
        raise Denied(
            EVENT + ".hashes", "the OVA's own hashes are not the manifest's"
        )
    # 5
    if (disk.name, disk.offset, disk.size) != (
        container.disk,
        container.offset,
        container.size,
    ):
        raise Denied(EVENT + ".disk", "the disk is not where it should be")
    return container


def _copy(source: int, offset: int, size: int, target: int) -> None:
    done = 0
    while done < size:
        # in the kernel; with shared extents where the file system can
        count = os.copy_file_range(
            source, target, size - done, offset + done, done
        )
        if not count:
            raise Denied(EVENT + ".disk", "the OVA became shorter")
        done += count


def extract(container: Container, source: int, target: int) -> HashedFile:
    """The disk, copied to an empty file; as :func:`check` found it.

    :param target: open for reading and writing; stays the caller's.
    :raises Denied: ``agent.unpack.disk|disk-digest``.
    """
    try:
        _copy(source, container.offset, container.size, target)
    except OSError as exc:
        raise Denied(EVENT + ".disk", "the disk cannot be taken out") from exc
    return _compared(container, hash_file(target))


def _compared(container: Container, disk: HashedFile) -> HashedFile:
    if disk.size != container.size or not hmac.compare_digest(
        disk.sha256, container.sha256
    ):
        raise Denied(EVENT + ".disk-digest", "the disk is not the manifest's")
    return disk


@contextmanager
def unpacked(
    root: Root,
    image: str,
    manifest: Manifest,
    key_url: KeyUrl,
    hashed: HashedFile,
) -> Iterator[HashedFile]:
    """The disk, which has taken the OVA's place as ``.part``.

    :param root: of ``instances_path``.
    :param image: Glance id.
    :raises Denied: as in the module's list.
    """
    container = check(manifest, key_url, hashed)
    name = base_name(image) + PART
    with root.directory(BASE_DIR) as directory:
        temporary = name + UNPACKED
        _remove(directory, temporary)
        fd = open_at(directory, temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            disk = extract(container, hashed.fd, fd)
            # one that cannot write, so that it can be leased
            disk = replace(
                disk,
                fd=os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC),
            )
        except MHError:
            _remove(directory, temporary)
            raise
        finally:
            os.close(fd)
        try:
            os.rename(
                temporary, name, src_dir_fd=directory, dst_dir_fd=directory
            )
            yield disk
        finally:
            os.close(disk.fd)
            _remove(directory, temporary)


def _remove(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass

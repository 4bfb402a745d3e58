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

"""Moves: what a disk needs where it came from, and where it arrives.

A disk that moves is ciphertext under a key that the tenant's server derives,
so nothing is handed over but public facts; the destination asks for the keys
itself, by ``prepare`` and ``make``, with what arrived.
"""

import fcntl
import os
import struct
from dataclasses import replace
from typing import Any

from mh_core.errors import Conflict, Denied, InputError, NotFound
from mh_core.image import grow, qcow2
from mh_nova.agent.attempt import Stage
from mh_nova.agent.facts import base_path
from mh_nova.agent.overlay import header_error
from mh_nova.agent.store import DiskRecord, InstanceRecord
from mh_nova.agent.work import Work

EVENT = "agent.move"
#: QEMU locks bytes of an image file that it has open, from 100 on for the
#: permissions it uses, from 200 on for those it does not share
#: (block/file-posix.c): first byte and number of bytes looked at.
_LOCKS = (100, 200)
_FLOCK = struct.Struct("hhqqi4x")


def in_use(fd: int) -> bool:
    """A QEMU, whoever started it, has the file open.

    :param fd: open for writing.
    """
    query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, *_LOCKS, 0)
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, query)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


class Moving(Work):
    """The verbs of a move."""

    def describe(self, instance: str) -> dict[str, Any]:
        """What another host must know to ask for the instance's keys, and
        how large the disks are that are here.

        Public facts, all of them, which the receiver believes no more than
        image properties.

        :raises NotFound: ``agent.record.unknown``.
        :raises Denied: ``agent.header.*``.
        """
        record = self._p.store.instance(instance)
        return {
            "image": record.image,
            "key_url": record.key_url,
            "key_id": record.key_id,
            "manifest": record.manifest,
            "compat": record.compat,
            "disks": [
                {
                    "name": disk.name,
                    "size": self._size(record, disk),
                    "base": disk.base,
                }
                for disk in record.disks
            ],
        }

    def _size(self, record: InstanceRecord, disk: DiskRecord) -> int:
        found = self._p.overlays.inspect(
            record.instance, disk.name, base_path(self._p.root, record, disk)
        )
        return disk.size if found is None else found.size

    def resize(self, instance: str, name: str, size: int) -> None:
        """Make a disk larger, between ``make`` and ``start``.

        1. the keys were released for this very move, and the disk opened
           with them: ``make`` went before;
        2. it is one of the instance's disks;
        3. nothing has it open;
        4. its headers are checked, changed, and checked again.

        :param size: bytes; never less than there is.
        :raises Conflict: ``agent.resize.not-made``, ``agent.resize.busy``.
        :raises NotFound: ``agent.resize.disk``, ``agent.path.*``.
        :raises Denied: ``agent.resize.size``, ``agent.header.*``.
        """
        with self._attempts.own(instance):
            # 1
            attempt = self._attempts.get(instance)
            if attempt is None or attempt.stage is not Stage.MADE:
                raise Conflict(
                    "agent.resize.not-made",
                    "a disk grows only where the instance has just arrived",
                )
            record = attempt.record
            # 2
            disk = next((d for d in record.disks if d.name == name), None)
            if disk is None:
                raise NotFound("agent.resize.disk", "there is no such disk")
            if size > self._conf.max_disk_size:
                raise Denied("agent.resize.size", "the size is over the bound")
            base = base_path(self._p.root, record, disk)
            self._p.overlays.require(instance, disk, base)
            grown = replace(disk, size=size)
            after = replace(
                record,
                disks=tuple(
                    grown if one is disk else one for one in record.disks
                ),
            )
            self._p.store.plan_instance(after)
            self._grow(record, disk, size)
            self._p.overlays.require(instance, grown, base)
            attempt.record = after
            self._p.store.save_instance(after)
            self._p.journal.write(
                "agent.resize.grown",
                instance,
                disk=name,
                size=str(size),
                request=attempt.request.digest().hex(),
            )

    def _grow(
        self, record: InstanceRecord, disk: DiskRecord, size: int
    ) -> None:
        fd = self._p.root.open(record.instance, disk.name, os.O_RDWR)
        try:
            # 3
            if in_use(fd):
                raise Conflict("agent.resize.busy", "the disk is in use")
            # 4
            grow.grow(fd, qcow2.read_header(fd), size)
        except InputError as exc:
            raise header_error(exc) from exc
        finally:
            os.close(fd)

    def arrived(self, instance: str) -> None:
        """The move is over here: what was released for it is let go.

        A guest that started has let go of it before; a disk that arrived
        with its guest off needs its keys only at its next start.
        """
        with self._attempts.own(instance):
            attempt = self._attempts.get(instance)
            if attempt is None or attempt.stage is Stage.STARTING:
                return
            self._give_up(instance)
            self._p.journal.write(
                EVENT + ".arrived",
                instance,
                durable=False,
                request=attempt.request.digest().hex(),
            )

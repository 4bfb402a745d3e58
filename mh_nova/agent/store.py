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
"""What the agent remembers: one small JSON file per instance and base.

No secret is in them: of a launch, only what is needed to ask for its keys
again.  Files are written to a temporary name and renamed, so that a crash
leaves the old or the new one.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mh_core.encoding import canonical_json, parse_json
from mh_core.errors import InputError, NotFound, Unavailable
from mh_core.fields import Fields
from mh_nova.agent.reason import reason

EVENT = "agent.record"
#: Ends the name of a file that is being written.
NEW = ".new"
DISK_NAME = r"disk(\.(local|swap|eph[0-9]{1,3}|rescue|config(\.rescue)?))?"


def write_atomic(path: Path, data: bytes, durable: bool = True) -> None:
    """Replace a file's content, mode 0600.

    :param durable: on disk when this returns.
    :raises Unavailable: ``agent.record.write``, e.g. the disk is full; what
        was there is there still.
    """
    temporary = path.with_name(path.name + NEW)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        fd = os.open(temporary, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(fd)
        os.replace(temporary, path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise Unavailable(
            EVENT + ".write",
            f"the agent's record cannot be written: {reason(exc)}",
        ) from exc


def sweep_new(directory: Path) -> None:
    """Drop what a process that died was writing; only at start."""
    for path in directory.glob("*" + NEW):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class DiskRecord:
    """
    :param name: nova's name of the disk.
    :param size: virtual size, bytes.
    :param luks_uuid: in the overlay's LUKS header.
    :param base: it lies over the image's base.
    :param sha256: hex, of the file of a disk that no guest writes to; empty
        where it is not known.
    """

    name: str
    size: int
    luks_uuid: str
    base: bool
    sha256: str = ""

    @classmethod
    def parse(cls, value: Any) -> "DiskRecord":
        fields = Fields(value, EVENT)
        disk = cls(
            fields.text("name", pattern=DISK_NAME),
            fields.integer("size", 0, 1 << 50),
            fields.uuid("luks_uuid"),
            fields.boolean("base"),
            fields.text("sha256", pattern=r"|[0-9a-f]{64}", default=""),
        )
        fields.end()
        return disk

    @property
    def drive(self) -> bool:
        """A config drive: made at the start that needs it, then only
        read."""
        return self.name.startswith("disk.config")


@dataclass(frozen=True)
class InstanceRecord:
    """One instance, as ``prepare`` gave it; ``made`` once its disks exist.

    :param vtpm: it has a virtual TPM.
    :param incoming: made for a live migration, and no guest has arrived.
    :param offered: a second lease was offered to the destination of one.
    """

    instance: str
    image: str
    project: str
    user: str
    host: str
    key_url: str
    key_id: str
    manifest: str
    compat: bool
    user_data_digest: str
    disks: tuple[DiskRecord, ...]
    made: bool = False
    vtpm: bool = False
    incoming: bool = False
    offered: bool = False

    @classmethod
    def parse(cls, value: Any) -> "InstanceRecord":
        """:raises InputError: ``agent.record``."""
        fields = Fields(value, EVENT)
        fields.integer("version", 1, 1)
        record = cls(
            instance=fields.uuid("instance"),
            image=fields.uuid("image"),
            project=fields.text("project", maximum=64),
            user=fields.text("user", maximum=64),
            host=fields.text("host"),
            key_url=fields.text("key_url", maximum=2048),
            key_id=fields.uuid("key_id"),
            manifest=fields.text("manifest", maximum=256 * 1024),
            compat=fields.boolean("compat"),
            user_data_digest=fields.text("user_data_digest", maximum=64),
            disks=fields.list("disks", DiskRecord.parse, 16),
            made=fields.boolean("made"),
            # not in the records of earlier versions
            vtpm=fields.boolean("vtpm", False),
            incoming=fields.boolean("incoming", False),
            offered=fields.boolean("offered", False),
        )
        fields.end()
        return record


@dataclass(frozen=True)
class BaseRecord:
    """Identity of a base that was hashed: stat fields and the digest."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str

    @classmethod
    def parse(cls, value: Any) -> "BaseRecord":
        fields = Fields(value, EVENT)
        most = (1 << 64) - 1
        record = cls(
            device=fields.integer("device", 0, most),
            inode=fields.integer("inode", 0, most),
            size=fields.integer("size", 0, most),
            mtime_ns=fields.integer("mtime_ns", -most, most),
            ctime_ns=fields.integer("ctime_ns", -most, most),
            sha256=fields.hex("sha256", 32).hex(),
        )
        fields.end()
        return record

    @classmethod
    def of(cls, fd: int, sha256: str) -> "BaseRecord":
        status = os.fstat(fd)
        return cls(
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            sha256,
        )


@dataclass
class Store:
    """
    :param root: the agent's state directory; made with mode 0700.
    """

    root: Path
    _instances: Path = field(init=False)
    _bases: Path = field(init=False)
    _plans: Path = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._instances = self.root / "instances"
        self._bases = self.root / "bases"
        self._plans = self.root / "plans"
        for path in (self._instances, self._bases, self._plans):
            path.mkdir(mode=0o700, exist_ok=True)
            sweep_new(path)

    def instances(self) -> list[str]:
        """Uuids of those on record."""
        return sorted(path.stem for path in self._instances.glob("*.json"))

    def instance(self, instance: str) -> InstanceRecord:
        """:raises NotFound: ``agent.record.unknown``.
        :raises InputError: ``agent.record``: damaged."""
        try:
            return self._read(self._instances, instance)
        except FileNotFoundError as exc:
            raise NotFound(
                EVENT + ".unknown", "the agent has no record of the instance"
            ) from exc

    @staticmethod
    def _read(folder: Path, instance: str) -> InstanceRecord:
        data = (folder / f"{instance}.json").read_bytes()
        record = InstanceRecord.parse(parse_json(data))
        if record.instance != instance:
            raise InputError(EVENT, "the record is of another instance")
        return record

    def save_instance(self, record: InstanceRecord) -> None:
        """A plan for it is over."""
        self._write(self._instances, record)
        self.drop_plan(record.instance)

    @staticmethod
    def _write(folder: Path, record: InstanceRecord) -> None:
        document = {"version": 1, **asdict(record)}
        write_atomic(
            folder / f"{record.instance}.json",
            canonical_json(document),
            # without disks there is nothing that a crash could orphan
            durable=record.made,
        )

    def drop_instance(self, instance: str) -> None:
        (self._instances / f"{instance}.json").unlink(missing_ok=True)
        self.drop_plan(instance)

    def plan_instance(self, record: InstanceRecord) -> None:
        """What the record will be once a disk has been changed: an agent
        that dies in between leaves it for the next one to find out."""
        self._write(self._plans, record)

    def planned(self) -> Iterator[tuple[str, InstanceRecord | None]]:
        """(instance, record); None for a plan that is damaged."""
        for path in sorted(self._plans.glob("*.json")):
            try:
                yield path.stem, self._read(self._plans, path.stem)
            except InputError:
                yield path.stem, None

    def drop_plan(self, instance: str) -> None:
        (self._plans / f"{instance}.json").unlink(missing_ok=True)

    def bases(self) -> list[str]:
        """Names of those on record."""
        return sorted(path.stem for path in self._bases.glob("*.json"))

    def base(self, name: str) -> BaseRecord | None:
        """What was known of a base; None where it must be hashed again."""
        try:
            data = (self._bases / f"{name}.json").read_bytes()
            return BaseRecord.parse(parse_json(data))
        except (FileNotFoundError, InputError):
            return None

    def save_base(self, name: str, record: BaseRecord) -> None:
        write_atomic(
            self._bases / f"{name}.json",
            canonical_json(asdict(record)),
            # lost in a crash, it costs one more hash
            durable=False,
        )

    def drop_base(self, name: str) -> None:
        (self._bases / f"{name}.json").unlink(missing_ok=True)

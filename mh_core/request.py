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
"""The key request: what a host says it needs a key for.

Everything in it is covered by the host's quote, through :meth:`digest`.
``project``, ``user``, ``instance`` and ``host`` are the cloud's claims; what
the key server relies on are the launch ticket and the manifest digest.
"""

from dataclasses import dataclass
from typing import Any

from mh_core.encoding import labelled_digest
from mh_core.fields import LINE, Fields

EVENT = "core.request"
#: The one purpose whose disks are volumes, and nothing but volumes.
ATTACH = "attach"
#: Begins the name of a volume; its uuid follows.
VOLUME = "volume-"
#: The most disks of a request, and the most volumes of one.
MAX_DISKS = 16
MAX_VOLUMES = 26
PURPOSES = (
    "launch",
    "start",
    "migrate-in",
    "snapshot",
    "resize",
    "flatten",
    "rescue",
    "stream",
    # beside an image that is not encrypted
    "rescue-plain",
    # of volumes only; see mh_core.volume
    ATTACH,
)
#: Purposes after which a guest runs on the host that asked.
STARTS = (
    "launch",
    "start",
    "migrate-in",
    "resize",
    "rescue",
    "rescue-plain",
)
#: Ends the names of a rescue image's disks, which are none of the
#: instance's own.
RESCUE = ".rescue"
ORIGIN_PATTERN = r"https?://[A-Za-z0-9.\-\[\]:]{1,240}"
#: Pattern of a disk's name.
NAME = r"[A-Za-z0-9._\-]{1,64}"


@dataclass(frozen=True)
class Disk:
    """One disk that the host is about to open or make.

    :param name: nova's name for it, e.g. ``disk``.
    :param luks_uuid: uuid in the LUKS header of its overlay, text.
    """

    name: str
    luks_uuid: str

    @classmethod
    def parse(cls, value: Any) -> "Disk":
        fields = Fields(value, EVENT + ".disk")
        disk = cls(fields.text("name", pattern=NAME), fields.uuid("luks_uuid"))
        fields.end()
        return disk

    def to_dict(self) -> dict[str, str]:
        return {"name": self.name, "luks_uuid": self.luks_uuid}


@dataclass(frozen=True)
class KeyRequest:
    """One request for one key.

    :param key_id: uuid of the key.
    :param kms_origin: scheme, host and port of the key URL.
    :param purpose: one of :data:`PURPOSES`.
    :param disks: at most :data:`MAX_DISKS`, none of them a volume; with
        the purpose :data:`ATTACH` 1 to :data:`MAX_VOLUMES` volumes, and no
        ticket.
    :param manifest_digest: SHA-256 of the manifest's compact JWS, hex.
    :param ticket: launch ticket, base64url, or empty.
    """

    key_id: str
    kms_origin: str
    purpose: str
    instance: str
    project: str
    user: str
    host: str
    image: str
    manifest_digest: str
    disks: tuple[Disk, ...]
    ticket: str = ""

    @classmethod
    def parse(cls, value: Any) -> "KeyRequest":
        """:raises InputError: ``core.request``."""
        fields = Fields(value, EVENT)
        request = cls(
            key_id=fields.uuid("key_id"),
            kms_origin=fields.text("kms_origin", pattern=ORIGIN_PATTERN),
            purpose=fields.choice("purpose", PURPOSES),
            instance=fields.uuid("instance"),
            project=fields.text("project", maximum=64, pattern=LINE),
            user=fields.text("user", maximum=64, pattern=LINE),
            host=fields.text("host", pattern=r"[A-Za-z0-9._\-]{1,255}"),
            image=fields.uuid("image"),
            manifest_digest=fields.hex("manifest_digest", 32).hex(),
            disks=fields.list("disks", Disk.parse, MAX_VOLUMES),
            ticket=fields.text("ticket", pattern=r"[A-Za-z0-9_\-]{0,64}"),
        )
        fields.end()
        names = [disk.name for disk in request.disks]
        if len(set(names)) != len(names):
            raise fields.fail("disks", "a name appears twice")
        if request.purpose == ATTACH:
            request._volumes(fields)
        elif len(names) > MAX_DISKS or any(
            name.startswith(VOLUME) for name in names
        ):
            raise fields.fail("disks", "too many, or a volume among them")
        return request

    def _volumes(self, fields: Fields) -> None:
        """:raises InputError: ``core.request``."""
        if not self.disks or any(
            disk.name != VOLUME + disk.luks_uuid for disk in self.disks
        ):
            raise fields.fail("disks", "volumes, each by its own uuid")
        if self.ticket:
            raise fields.fail("ticket", "a volume is no launch")

    @property
    def holds(self) -> bool:
        """Its host is to run the instance, and so gets its lease.

        Not by the key of a rescue image, which opens nothing of the
        instance: a rescue's guest runs by the lease of the instance's own.
        """
        return self.purpose in STARTS and not (
            self.purpose == "rescue"
            and self.disks
            and all(disk.name.endswith(RESCUE) for disk in self.disks)
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "key_id": self.key_id,
            "kms_origin": self.kms_origin,
            "purpose": self.purpose,
            "instance": self.instance,
            "project": self.project,
            "user": self.user,
            "host": self.host,
            "image": self.image,
            "manifest_digest": self.manifest_digest,
            "disks": [disk.to_dict() for disk in self.disks],
            "ticket": self.ticket,
        }

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) over every field, length-prefixed, in order."""
        parts = [
            self.key_id,
            self.kms_origin,
            self.purpose,
            self.instance,
            self.project,
            self.user,
            self.host,
            self.image,
            self.manifest_digest,
            self.ticket,
            str(len(self.disks)),
        ]
        for disk in self.disks:
            parts += [disk.name, disk.luks_uuid]
        return labelled_digest(
            "mh/request/v1", [part.encode() for part in parts]
        )

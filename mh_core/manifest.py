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
"""Manifest: the tenant's signed statement of what one image is."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mh_core import jose
from mh_core.encoding import canonical_json, parse_json, unb64u
from mh_core.errors import InputError
from mh_core.fields import Fields
from mh_core.launch_policy import LaunchPolicy

EVENT = "core.manifest"
TYP = "mh-manifest+jws"
#: Longest manifest that fits an image property, characters.
MAX_PROPERTY = 32 * 1024
#: Pattern of the name of a file in an OVA.
FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9._\-]{0,98}"
#: What a manifest may ask to be measured: nothing beyond the ciphertext,
#: listed modules, the boot-critical set, or every file.
MEASURES = ("ciphertext", "modules", "boot", "all")
#: Most modules of one manifest.
MAX_MODULES = 4096
_LVM = r"[A-Za-z0-9+_][A-Za-z0-9+_.-]{0,127}"
#: ``<volume>:<path or @area>``; see the protocol page.
MODULE = (
    rf"(?:disk|p[1-9][0-9]{{0,2}}|{_LVM}/{_LVM}):"
    r"(?:@boot-area|@table|@raw|/[^\n\t]*)"
)
#: Format of the disk inside to the format of QEMU's driver.
DRIVERS = {"qcow2+luks": "qcow2", "luks": "luks"}
#: A disk inside a container starts and ends with a sector.
SECTOR = 512


@dataclass(frozen=True)
class Container:
    """An OVA: what is uploaded is a tar file with an envelope and the disk.

    :param envelope: SHA-256 of the OVF envelope, hex.
    :param disk: name of the disk's file in it.
    :param offset: where the disk begins in the tar file, bytes.
    :param size: of the disk, bytes of ciphertext.
    :param sha256: of the disk, hex.
    """

    envelope: str
    disk: str
    offset: int
    size: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return {"format": "ova", **asdict(self)}

    @classmethod
    def parse(cls, value: Any) -> "Container":
        fields = Fields(value, EVENT + ".container")
        fields.choice("format", ("ova",))
        container = cls(
            envelope=fields.hex("envelope", 32).hex(),
            disk=fields.text("disk", pattern=FILE_NAME),
            offset=fields.integer("offset", SECTOR, 1 << 50),
            size=fields.integer("size", 1, 1 << 50),
            sha256=fields.hex("sha256", 32).hex(),
        )
        fields.end()
        return container


@dataclass(frozen=True)
class Manifest:
    """
    :param image: Glance id of the image, chosen by the client.
    :param key_id: key the image is encrypted under.
    :param format: ``qcow2+luks`` (or ``luks``).
    :param size: bytes of ciphertext, the whole file.
    :param virtual_size: bytes the guest sees.
    :param sha256: of the ciphertext, hex.
    :param sha512: of the ciphertext, hex (Glance's ``os_hash_value``).
    :param measure: one of :data:`MEASURES`.
    :param modules: ``<volume>:<path>`` inside the image to SHA-256 (hex);
        empty exactly where ``measure`` is ``ciphertext``.
    :param container: where the file is an OVA; None: it is the disk itself.
    """

    image: str
    key_id: str
    format: str
    size: int
    virtual_size: int
    sha256: str
    sha512: str
    launch_policy: LaunchPolicy = field(default_factory=LaunchPolicy)
    measure: str = "ciphertext"
    modules: dict[str, str] = field(default_factory=dict)
    container: Container | None = None

    @property
    def disk_size(self) -> int:
        """Bytes of the disk, as a host keeps it."""
        return self.container.size if self.container else self.size

    @property
    def disk_sha256(self) -> str:
        """Hex, of the disk as a host keeps it."""
        return self.container.sha256 if self.container else self.sha256

    def to_dict(self) -> dict[str, Any]:
        document = self._document()
        if self.container is not None:
            document["container"] = self.container.to_dict()
        return document

    def _document(self) -> dict[str, Any]:
        return {
            "version": 1,
            "image": self.image,
            "key_id": self.key_id,
            "format": self.format,
            "size": self.size,
            "virtual_size": self.virtual_size,
            "sha256": self.sha256,
            "sha512": self.sha512,
            "launch_policy": self.launch_policy.to_dict(),
            "measure": self.measure,
            "modules": self.modules,
        }

    @classmethod
    def parse(cls, payload: bytes) -> "Manifest":
        """:raises InputError: ``core.manifest``."""
        fields = Fields(parse_json(payload, 8 * 1024 * 1024), EVENT)
        fields.integer("version", 1, 1)
        measure = fields.choice("measure", MEASURES)
        modules = fields.object("modules")
        if len(modules) > MAX_MODULES:
            raise fields.fail("modules", "too many")
        if bool(modules) != (measure != "ciphertext"):
            raise fields.fail("modules", "not what is to be measured")
        for name, value in modules.items():
            one = Fields({"name": name, "sha256": value}, EVENT)
            one.text("name", maximum=4352, pattern=MODULE)
            one.hex("sha256", 32)
        manifest = cls(
            image=fields.uuid("image"),
            key_id=fields.uuid("key_id"),
            format=fields.choice("format", tuple(DRIVERS)),
            size=fields.integer("size", 1, 1 << 50),
            virtual_size=fields.integer("virtual_size", 512, 1 << 50),
            sha256=fields.hex("sha256", 32).hex(),
            sha512=fields.hex("sha512", 64).hex(),
            launch_policy=LaunchPolicy.parse(fields.object("launch_policy")),
            measure=measure,
            modules=modules,
            container=Container.parse(fields.object("container"))
            if fields.has("container")
            else None,
        )
        fields.end()
        inside = manifest.container
        if inside is not None and (
            inside.offset % SECTOR
            or inside.offset + inside.size > manifest.size
        ):
            raise InputError(EVENT, "the disk is not within its container")
        return manifest

    def sign(self, key: Mapping[str, Any]) -> str:
        """Compact JWS by the tenant's signing key."""
        return jose.sign(canonical_json(self.to_dict()), key, TYP)

    @classmethod
    def verify(
        cls, token: str, keys: Iterable[Mapping[str, Any]]
    ) -> "Manifest":
        """:raises InputError: malformed.
        :raises VerificationError: ``core.jose.signature``."""
        payload, _kid = jose.verify(token, keys, TYP)
        return cls.parse(payload)


def claimed_driver(token: str) -> str:
    """QEMU's name of the format that a manifest claims: qcow2 or luks.

    Nothing is verified here: for names in a domain, whose start waits for
    :meth:`Manifest.verify` of the same token. What cannot be read is qcow2,
    which every check that follows holds against the file.
    """
    form = _claims(token).get("format")
    return DRIVERS.get(form, "qcow2") if isinstance(form, str) else "qcow2"


def claimed_size(token: str) -> int:
    """Bytes of the file that a manifest claims; 0 where it claims none.

    Nothing is verified here: for a bound on what is read before that.
    """
    size = _claims(token).get("size")
    return size if isinstance(size, int) and 0 < size <= 1 << 50 else 0


def _claims(token: str) -> dict[str, Any]:
    try:
        claims = parse_json(unb64u(token.split(".")[1]), 8 * 1024 * 1024)
    except (InputError, IndexError):
        return {}
    return claims if isinstance(claims, dict) else {}


def digest(token: str) -> str:
    """SHA-256 (hex) of the compact JWS, the name policies know it by.

    :raises InputError: ``core.manifest``: not ASCII.
    """
    try:
        return hashlib.sha256(token.encode("ascii")).hexdigest()
    except UnicodeEncodeError as exc:
        raise InputError(EVENT, "not a compact token") from exc

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
from dataclasses import dataclass, field
from typing import Any

from mh_core import jose
from mh_core.encoding import canonical_json, parse_json
from mh_core.errors import InputError
from mh_core.fields import Fields
from mh_core.launch_policy import LaunchPolicy

EVENT = "core.manifest"
TYP = "mh-manifest+jws"
#: Longest manifest that fits an image property, characters.
MAX_PROPERTY = 32 * 1024
_MAX_MODULES = 100_000


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
    :param modules: path inside the image to SHA-256 (hex).
    """

    image: str
    key_id: str
    format: str
    size: int
    virtual_size: int
    sha256: str
    sha512: str
    launch_policy: LaunchPolicy = field(default_factory=LaunchPolicy)
    modules: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
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
            "modules": self.modules,
        }

    @classmethod
    def parse(cls, payload: bytes) -> "Manifest":
        """:raises InputError: ``core.manifest``."""
        fields = Fields(parse_json(payload, 8 * 1024 * 1024), EVENT)
        fields.integer("version", 1, 1)
        modules = fields.object("modules")
        if len(modules) > _MAX_MODULES:
            raise fields.fail("modules", "too many")
        for path, value in modules.items():
            one = Fields({"path": path, "sha256": value}, EVENT)
            one.text("path", minimum=1, maximum=4096)
            one.hex("sha256", 32)
        manifest = cls(
            image=fields.uuid("image"),
            key_id=fields.uuid("key_id"),
            format=fields.choice("format", ("qcow2+luks", "luks")),
            size=fields.integer("size", 1, 1 << 50),
            virtual_size=fields.integer("virtual_size", 512, 1 << 50),
            sha256=fields.hex("sha256", 32).hex(),
            sha512=fields.hex("sha512", 64).hex(),
            launch_policy=LaunchPolicy.parse(fields.object("launch_policy")),
            modules=modules,
        )
        fields.end()
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


def digest(token: str) -> str:
    """SHA-256 (hex) of the compact JWS, the name policies know it by.

    :raises InputError: ``core.manifest``: not ASCII.
    """
    try:
        return hashlib.sha256(token.encode("ascii")).hexdigest()
    except UnicodeEncodeError as exc:
        raise InputError(EVENT, "not a compact token") from exc

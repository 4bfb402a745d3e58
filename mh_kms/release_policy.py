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

"""Release policy: under what conditions a key goes to a host."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from cryptography import x509

from mh_core import jose
from mh_core.akcert import load_certificate
from mh_core.encoding import parse_json
from mh_core.errors import InputError
from mh_core.fields import Fields, text_item
from mh_core.request import PURPOSES
from mh_core.result import LEVELS

EVENT = "kms.policy"
#: Run for every release, whether the policy lists them or not.
BUILT_IN = ("level", "project", "purpose", "manifest", "tags")
_AUTHORITY_URL = r"https://[A-Za-z0-9.\-\[\]:]{1,240}"
_JWK_MEMBERS = frozenset(("kty", "crv", "x", "y", "kid", "use", "alg"))
_CHECK_NAME = r"[a-z][a-z0-9_\-]{0,63}"


@dataclass(frozen=True)
class Authority:
    """An attestation authority that the tenant pins.

    :param issuer: as its results name it.
    :param url: origin, https.
    :param jwk: public key of its results.
    """

    issuer: str
    url: str
    jwk: jose.Jwk

    @classmethod
    def parse(cls, value: Any) -> "Authority":
        fields = Fields(value, EVENT + ".authority")
        authority = cls(
            issuer=fields.text("issuer", minimum=1),
            url=fields.text("url", pattern=_AUTHORITY_URL),
            jwk=signing_key(fields.object("jwk")),
        )
        fields.end()
        return authority


@dataclass(frozen=True)
class ReleasePolicy:
    """As the protocol page has it; what is absent is the strict value.

    :param tags: name to the values the host may have.
    :param lease: seconds, 0 for no end.
    """

    authorities: tuple[Authority, ...]
    enrollers: tuple[x509.Certificate, ...]
    projects: tuple[str, ...]
    manifest_keys: tuple[jose.Jwk, ...]
    levels: tuple[str, ...] = ("trusted",)
    purposes: tuple[str, ...] = ("launch", "start")
    tickets: str = "required"
    compat: bool = False
    lease: int = 0
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    checks: tuple[str, ...] = BUILT_IN

    @property
    def all_checks(self) -> tuple[str, ...]:
        """Built-in checks first, then the listed ones, each once."""
        return tuple(dict.fromkeys(BUILT_IN + self.checks))

    @classmethod
    def parse(cls, value: Any) -> "ReleasePolicy":
        """:raises InputError: ``kms.policy``, ``kms.policy.*``,
        ``core.*``."""
        fields = Fields(value, EVENT)
        fields.integer("version", 1, 1)
        item = text_item(EVENT, 64)
        policy = cls(
            authorities=fields.list("authorities", Authority.parse, 8),
            enrollers=fields.list("enrollers", _certificate, 8),
            levels=fields.list("levels", _one_of(LEVELS), 8, cls.levels),
            projects=fields.list("projects", item, 1024),
            purposes=fields.list(
                "purposes", _one_of(PURPOSES), 16, cls.purposes
            ),
            manifest_keys=fields.list("manifest_keys", signing_key, 64),
            tickets=fields.choice("tickets", ("required", "none"), "required"),
            compat=fields.boolean("compat", False),
            lease=fields.integer("lease", 0, 1 << 31, 0),
            tags=_tags(fields.object("tags", {})),
            checks=fields.list("checks", _check, 32, cls.checks),
        )
        fields.end()
        return policy


@lru_cache(maxsize=256)
def load(text: str) -> ReleasePolicy:
    """A policy as stored: the owner's own document, canonical JSON."""
    return ReleasePolicy.parse(parse_json(text.encode()))


def signing_key(value: Any) -> jose.Jwk:
    """A public P-256 key, the only kind that ES256 verifies with.

    :raises InputError: ``core.jose.key``.
    """
    if not isinstance(value, dict) or value.get("kty") != "EC":
        raise InputError("core.jose.key", "a P-256 public key is expected")
    if not set(value) <= _JWK_MEMBERS or not all(
        isinstance(member, str) and len(member) <= 256
        for member in value.values()
    ):
        raise InputError("core.jose.key", "only a public key belongs here")
    return jose.public(value)


def _certificate(value: Any) -> x509.Certificate:
    if not isinstance(value, str) or len(value) > 8192:
        raise InputError(EVENT, "enrollers: not a PEM certificate")
    return load_certificate(value)


def _one_of(values: tuple[str, ...]) -> Any:
    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in values:
            raise InputError(EVENT, "must be one of " + ", ".join(values))
        return value

    return convert


def _check(value: Any) -> str:
    return Fields({"check": value}, EVENT).text("check", pattern=_CHECK_NAME)


def _tags(value: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """``{"geo": "DE"}`` or ``{"geo": ["DE", "FR"]}``."""
    item = text_item(EVENT, 255)
    out: dict[str, tuple[str, ...]] = {}
    if len(value) > 64:
        raise InputError(EVENT, "tags: too many")
    for name, allowed in value.items():
        if not 0 < len(name) <= 64:
            raise InputError(EVENT, "tags: a name has a bad length")
        entries = [allowed] if isinstance(allowed, str) else allowed
        out[name] = Fields({"tags": entries}, EVENT).list("tags", item, 64)
    return out

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
"""Configuration of the client: one TOML file, read strictly.

::

    [kms]
    url = "https://kms.tenant.example:8443"
    ca_file = "kms-ca.pem"                  # default: the system's CAs
    transport_thumbprint = "…"              # RFC 7638, pinned
    token_file = "kms.token"                # mode 0600

    [attest]
    url = "https://attest.example:8444"
    ca_file = "attest-ca.pem"
    token_file = "attest.token"
    issuer = "https://attest.example"       # pinned
    jwk_thumbprint = "…"                    # pinned
    enroller_sha256 = "…"                   # pinned, hex

    [signing]
    key_file = "signing.jwk"                # made by 'trusted key create'

Paths are relative to the file's own folder.
"""

import os
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mh_core.errors import InputError, MHError
from mh_core.fields import Fields
from mh_core.secret import Secret

EVENT = "client.config"
DEFAULT = "~/.config/mystery-hill/client.toml"
_THUMBPRINT = r"[A-Za-z0-9_\-]{43}"
_SHA256 = r"[0-9a-fA-F]{64}"


@dataclass(frozen=True)
class Endpoint:
    """How one service is reached.

    :param url: ``https://host[:port]``, no path.
    :param ca_file: CA bundle, or ``None`` for the system's.
    """

    url: str
    ca_file: str | None
    token_file: str | None

    def token(self) -> Secret | None:
        """The bearer token, read when it is needed.

        :raises InputError: ``client.config.token``.
        """
        if self.token_file is None:
            return None
        data = read_private(Path(self.token_file), EVENT + ".token")
        text = data.strip()
        if not text or len(text) > 4096 or not text.isascii():
            raise InputError(
                EVENT + ".token", f"{self.token_file} does not hold a token"
            )
        return Secret(text)


@dataclass(frozen=True)
class KmsConfig:
    endpoint: Endpoint
    transport_thumbprint: str


@dataclass(frozen=True)
class AttestConfig:
    """Pins are empty where the file has none; what needs one says so."""

    endpoint: Endpoint
    issuer: str = ""
    jwk_thumbprint: str = ""
    enroller_sha256: str = ""


@dataclass(frozen=True)
class Config:
    """Sections are optional: an operator needs no key server."""

    path: Path
    kms_section: KmsConfig | None = None
    attest_section: AttestConfig | None = None
    signing_key_file: Path = field(default_factory=Path)

    @property
    def kms(self) -> KmsConfig:
        """:raises InputError: ``client.config.kms``."""
        if self.kms_section is None:
            raise self._missing("kms", "url, ca_file, transport_thumbprint")
        return self.kms_section

    @property
    def attest(self) -> AttestConfig:
        """:raises InputError: ``client.config.attest``."""
        if self.attest_section is None:
            raise self._missing("attest", "url, ca_file, token_file")
        return self.attest_section

    def pin(self, name: str) -> str:
        """A pinned value of the authority.

        :raises InputError: ``client.config.pin``: not in the file.
        """
        value = str(getattr(self.attest, name))
        if not value:
            raise InputError(
                EVENT + ".pin",
                f"set {name} in section [attest] of {self.path}; ask the "
                "authority for it over a way you trust, for example "
                "'mh-attest-manage identity show' on its server",
            )
        return value

    def _missing(self, section: str, members: str) -> InputError:
        return InputError(
            f"{EVENT}.{section}",
            f"this needs a section [{section}] ({members}) in {self.path}; "
            "name another file with --os-trusted-config",
        )


def read_private(path: Path, event: str) -> bytes:
    """A small file that nobody else can read.

    :raises InputError: not there, not ours, or open to others.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as stream:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(event, f"{path} is not a file")
            if status.st_mode & 0o077:
                raise InputError(
                    event,
                    f"{path} can be read by others; run 'chmod 600 {path}'",
                )
            if status.st_uid not in (os.geteuid(), 0):
                raise InputError(event, f"{path} belongs to another user")
            return stream.read(65536)
    except OSError as exc:
        raise InputError(event, f"cannot read {path}: {exc.strerror}") from exc


def _endpoint(fields: Fields, base: Path) -> Endpoint:
    url = fields.text("url", maximum=255).rstrip("/")
    parts = urlsplit(url)
    if (
        parts.scheme != "https"
        or not parts.hostname
        or parts.path
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise fields.fail("url", "https://host[:port] is expected")
    return Endpoint(
        url=url,
        ca_file=_path(fields, "ca_file", base),
        token_file=_path(fields, "token_file", base),
    )


def _path(fields: Fields, name: str, base: Path) -> str | None:
    if not fields.has(name):
        return None
    text = fields.text(name, minimum=1, maximum=1024)
    return str(base / Path(text).expanduser())


def _kms(value: Any, base: Path) -> KmsConfig:
    fields = Fields(value, EVENT + ".kms")
    section = KmsConfig(
        _endpoint(fields, base),
        fields.text("transport_thumbprint", pattern=_THUMBPRINT),
    )
    fields.end()
    return section


def _attest(value: Any, base: Path) -> AttestConfig:
    fields = Fields(value, EVENT + ".attest")
    section = AttestConfig(
        _endpoint(fields, base),
        issuer=fields.text("issuer", default=""),
        jwk_thumbprint=fields.text(
            "jwk_thumbprint", pattern=_THUMBPRINT, default=""
        ),
        enroller_sha256=fields.text(
            "enroller_sha256", pattern=_SHA256, default=""
        ).lower(),
    )
    fields.end()
    return section


def load(path: str | None = None) -> Config:
    """Read the file.

    :param path: from ``--os-trusted-config``; default :data:`DEFAULT`.
    :raises InputError: ``client.config.file|syntax|kms|attest|signing``.
    """
    where = Path(path or DEFAULT).expanduser().absolute()
    try:
        document = tomllib.loads(where.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise InputError(
            EVENT + ".file",
            f"{where} is not there; write it (see the quick start in the "
            "documentation) or name another with --os-trusted-config",
        ) from exc
    except OSError as exc:
        raise InputError(
            EVENT + ".file", f"cannot read {where}: {exc.strerror}"
        ) from exc
    except ValueError as exc:
        raise InputError(
            EVENT + ".syntax", f"{where} is not TOML: {exc}"
        ) from exc
    base = where.parent
    try:
        fields = Fields(document, EVENT)
        kms, attest = fields.object("kms", None), fields.object("attest", None)
        signing = Fields(fields.object("signing", {}), EVENT + ".signing")
        fields.end()
        key_file = _path(signing, "key_file", base)
        signing.end()
        return Config(
            path=where,
            kms_section=None if kms is None else _kms(kms, base),
            attest_section=None if attest is None else _attest(attest, base),
            signing_key_file=Path(key_file or base / "signing.jwk"),
        )
    except MHError as exc:
        raise InputError(exc.event, f"{where}: {exc.message}") from exc

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
"""VM reports, verified by the tenant's own client.

The attestation server has accepted the report before; nothing of that is
believed here beyond its signature under the pinned key.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mh_client.attest import Authority
from mh_client.audit import Entry
from mh_client.images import TrustedImage
from mh_core import jose
from mh_core.encoding import parse_json
from mh_core.errors import MHError, VerificationError
from mh_core.evidence import Evidence, verify_host
from mh_core.fields import Fields
from mh_core.tpm.quote import LABEL_VM, extra_data
from mh_core.vm_report import TYP, VmClaims

EVENT = "client.report"
CHECKS = (
    "authority",
    "host",
    "instance",
    "image",
    "key",
    "measured",
    "current",
)
#: Seconds between a start and its report, with the clocks of both.
SKEW = 300
#: Seconds that the clocks of key server and authority may be apart.
CLOCKS = 60
#: Modules that are shown by name.
_SHOWN = 100


@dataclass(frozen=True)
class Check:
    """:param event: empty where it passed."""

    name: str
    passed: bool
    detail: str
    event: str = ""

    def __str__(self) -> str:
        if self.passed:
            return f"ok: {self.detail}" if self.detail else "ok"
        return f"REFUSED: {self.detail} [{self.event}]"


@dataclass(frozen=True)
class Judgement:
    """What became of one report."""

    checks: tuple[Check, ...]
    claims: VmClaims | None

    def refused(self, name: str) -> bool:
        return any(c.name == name and not c.passed for c in self.checks)

    @property
    def passed(self) -> bool:
        """Every check was made, and passed."""
        return tuple(c.name for c in self.checks) == CHECKS and all(
            c.passed for c in self.checks
        )


@dataclass
class _Report:
    """One entry of ``GET /v1/vm-reports``, as sent."""

    token: str
    nonce: bytes
    claims: VmClaims
    evidence: Evidence
    issued_at: int = 0

    @classmethod
    def parse(cls, value: Any) -> "_Report":
        fields = Fields(value, EVENT + ".document")
        report = cls(
            token=fields.text("report", maximum=jose.MAX_TOKEN),
            nonce=fields.b64u("nonce", 32),
            claims=VmClaims.parse(fields.object("claims")),
            evidence=Evidence.parse(fields.object("evidence")),
        )
        fields.end()
        return report


def judge(
    document: Any,
    *,
    authority: Authority,
    instance: str,
    project: str,
    image: TrustedImage,
    kms_origin: str,
    levels: Collection[str],
    granted: Entry | None,
) -> Judgement:
    """Verify one report about one instance.

    1. authority: the report was signed by the pinned authority, speaks of
       exactly these claims, and found the host good enough;
    2. host: the AK was certified by the pinned enroller, and quoted this
       nonce and exactly these claims (``LABEL_VM``);
    3. instance: the claims name this instance, project and the host whose
       AK it is;
    4. image: they name the image and the tenant's own manifest;
    5. key: they name the image's key and the tenant's key server;
    6. measured: every measurer said ``ok``;
    7. current: it is of the last start the key server released a key for,
       not of an earlier one, and by the host that it was released to.

    A later check is made even where an earlier one failed, so that a
    person sees all of it; one failure makes the whole fail.

    :param levels: that the key's release policy accepts.
    :param granted: the last release of the key to this instance.
    """
    try:
        report = _Report.parse(document)
    except MHError as exc:
        return Judgement(
            (Check("authority", False, exc.message, exc.event),), None
        )
    claims = report.claims
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("authority", lambda: _authority(report, authority, levels)),
        ("host", lambda: _host(report, authority)),
        ("instance", lambda: _instance(report, instance, project)),
        ("image", lambda: _image(claims, image)),
        ("key", lambda: _key(claims, image, kms_origin)),
        ("measured", lambda: _measured(claims, image)),
        ("current", lambda: _current(report, granted)),
    )
    checks = []
    for name, step in steps:
        try:
            checks.append(Check(name, True, step()))
        except MHError as exc:
            checks.append(Check(name, False, exc.message, exc.event))
    return Judgement(tuple(checks), claims)


def _refuse(cause: str, message: str) -> VerificationError:
    return VerificationError(f"{EVENT}.{cause}", message)


def _authority(
    report: _Report, authority: Authority, levels: Collection[str]
) -> str:
    payload, _kid = jose.verify(report.token, [authority.jwk], TYP)
    fields = Fields(parse_json(payload), EVENT + ".token")
    issuer = fields.text("iss")
    issued_at = fields.integer("iat", 1, 1 << 40)
    claims = VmClaims.parse(fields.object("claims"))
    host = fields.text("host")
    level = fields.text("level")
    nonce = fields.b64u("nonce", 32)
    fields.end()
    if issuer != authority.issuer:
        raise _refuse("issuer", "another issuer")
    if (
        nonce != report.nonce
        or claims != report.claims
        or host != report.claims.host
    ):
        raise _refuse("token", "the token speaks of another report")
    report.issued_at = issued_at
    if level not in levels:
        raise _refuse("level", f"the host is {level!r}")
    return f"{issuer} says {level}"


def _host(report: _Report, authority: Authority) -> str:
    if not report.issued_at:
        raise _refuse("host", "the time of the report is not known")
    verified = verify_host(
        report.evidence,
        extra=extra_data(LABEL_VM, report.nonce, report.claims.digest()),
        enrollers=[authority.enroller],
        # an AK certificate that has expired since then was good then
        now=datetime.fromtimestamp(report.issued_at, UTC),
    )
    if verified.identity.host != report.claims.host:
        raise _refuse("host", "the AK is another host's")
    if abs(report.claims.started_at - report.issued_at) > SKEW:
        raise _refuse("time", "started long before it was reported")
    return f"{verified.identity.host} ({verified.identity.host_id})"


def _instance(report: _Report, instance: str, project: str) -> str:
    if report.claims.instance != instance:
        raise _refuse("instance", "the report is of another instance")
    if report.claims.project != project:
        raise _refuse("project", "the instance ran for another project")
    return instance


def _image(claims: VmClaims, image: TrustedImage) -> str:
    if claims.image != image.id:
        raise _refuse("image", "another image was started")
    if claims.manifest_digest != image.digest:
        raise _refuse("manifest", "started under another manifest")
    return image.digest


def _key(claims: VmClaims, image: TrustedImage, origin: str) -> str:
    if claims.key_id != image.properties.key_id:
        raise _refuse("key", "opened with another key")
    if claims.kms_origin != origin:
        raise _refuse("origin", "the key came from another key server")
    return origin


def _measured(claims: VmClaims, image: TrustedImage) -> str:
    if not claims.measured:
        raise _refuse("measured", "nothing was measured")
    for name, verdict in sorted(claims.measured.items()):
        if verdict != "ok":
            raise _refuse("measured", f"{name[-160:]} says {verdict}")
    manifest = image.manifest
    wanted = {f"files:{name}" for name in manifest.modules}
    if manifest.measure != "ciphertext":
        wanted.add("files")
    missing = sorted(wanted - set(claims.measured))
    if missing:
        raise _refuse("measured", f"{missing[0][-160:]} was not measured")
    return _listed(sorted(claims.measured))


def _listed(names: list[str]) -> str:
    """All that will fit in a line, and how many more."""
    text = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        text += f" and {len(names) - _SHOWN} more"
    return text


def _current(report: _Report, granted: Entry | None) -> str:
    if granted is None:
        raise _refuse("release", "your key server released no key for it")
    if (
        granted.request_digest != report.claims.request_digest
        or not report.issued_at
        or report.issued_at < granted.at - CLOCKS
    ):
        raise _refuse("current", "the report is of an earlier start")
    if granted.host != report.claims.host:
        raise _refuse("key-host", "the key went to another host")
    return f"key released at {granted.time} [{granted.event}]"

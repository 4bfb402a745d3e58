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

"""AK certificates that openssl issued."""

import datetime
import pathlib
import tempfile
from typing import Any

from jose_parts import openssl

Case = dict[str, Any]
UUID = "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10"
OTHER = "d5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51"
USAGE = "extendedKeyUsage=critical,2.23.133.8.3"
LEAF = "basicConstraints=critical,CA:FALSE"
NAME = f"subjectAltName=URI:urn:uuid:{UUID}"
GOOD = (LEAF, USAGE, NAME)


class Issuer:
    """A directory with keys, and enrollers that sign what they get."""

    def __init__(self, directory: str) -> None:
        self.directory = pathlib.Path(directory)
        self.ak = self.key("ak")
        self.enroller = self.authority("enroller", 30)

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def key(self, name: str) -> str:
        curve = "ec_paramgen_curve:P-256"
        openssl.run(
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            curve,
            "-out",
            self.path(f"{name}.key"),
        )
        return name

    def public(self, name: str) -> str:
        """SubjectPublicKeyInfo in PEM."""
        found = openssl.run("pkey", "-in", self.path(f"{name}.key"), "-pubout")
        return found.decode()

    def authority(self, name: str, days: int, key: str = "") -> str:
        """A self-signed enroller certificate."""
        key = key or self.key(f"{name}-key")
        openssl.run(
            "req",
            "-new",
            "-x509",
            "-key",
            self.path(f"{key}.key"),
            "-subj",
            "/CN=enroller",
            "-days",
            str(days),
            "-addext",
            "keyUsage=critical,keyCertSign",
            "-out",
            self.path(f"{name}.pem"),
        )
        return name

    def pem(self, name: str) -> str:
        return (self.directory / f"{name}.pem").read_text()

    def issue(
        self,
        extensions: tuple[str, ...] = GOOD,
        enroller: str = "enroller",
        subject: str = "/CN=node1",
        key: str = "ak",
        days: int = 7,
    ) -> str:
        """A certificate in PEM."""
        request = openssl.run(
            "req",
            "-new",
            "-key",
            self.path(f"{key}.key"),
            "-subj",
            subject,
        )
        extfile = self.directory / "extensions"
        extfile.write_text("\n".join(extensions) + "\n")
        found = openssl.run(
            "x509",
            "-req",
            "-CA",
            self.path(f"{enroller}.pem"),
            "-CAkey",
            self.path(f"{enroller}-key.key"),
            "-CAcreateserial",
            "-days",
            str(days),
            "-extfile",
            str(extfile),
            data=request,
        )
        return found.decode()


def _bad(issuer: Issuer) -> list[tuple[str, str, str]]:
    event = "core.akcert."
    two = f"subjectAltName=URI:urn:uuid:{UUID},URI:urn:uuid:{OTHER}"
    upper = f"subjectAltName=URI:urn:uuid:{UUID.upper()}"
    strange = "1.3.6.1.4.1.55555.1=critical,ASN1:NULL"
    issue = issuer.issue
    own = "enroller-key"
    ca = "basicConstraints=critical,CA:TRUE"
    good = issue()
    return [
        ("foreign-issuer", issue(enroller="foreign"), event + "issuer"),
        ("other-key", issue(key="other"), event + "key"),
        ("enroller-itself", issuer.pem("enroller"), event + "key"),
        ("key-of-enroller", issue(key=own), event + "key"),
        ("ca", issue((ca, USAGE, NAME)), event + "usage"),
        ("constraints-missing", issue((USAGE, NAME)), event + "usage"),
        ("usage-missing", issue((LEAF, NAME)), event + "usage"),
        (
            "usage-server",
            issue((LEAF, "extendedKeyUsage=serverAuth", NAME)),
            event + "usage",
        ),
        (
            "usage-two",
            issue((LEAF, USAGE + ",serverAuth", NAME)),
            event + "usage",
        ),
        (
            "usage-any",
            issue((LEAF, "extendedKeyUsage=anyExtendedKeyUsage", NAME)),
            event + "usage",
        ),
        ("critical-unknown", issue((*GOOD, strange)), event + "usage"),
        ("name-missing", issue((LEAF, USAGE)), event + "name"),
        ("name-two", issue((LEAF, USAGE, two)), event + "name"),
        ("name-upper", issue((LEAF, USAGE, upper)), event + "name"),
        (
            "name-bare",
            issue((LEAF, USAGE, f"subjectAltName=URI:{UUID}")),
            event + "name",
        ),
        (
            "name-dns",
            issue((LEAF, USAGE, "subjectAltName=DNS:node1")),
            event + "name",
        ),
        ("host-two", issue(subject="/CN=node1/CN=node2"), event + "name"),
        ("host-none", issue(subject="/O=node1"), event + "name"),
        ("truncated", good[: len(good) // 2], event + "parse"),
        ("empty", "", event + "parse"),
        ("key", issuer.public("ak"), event + "parse"),
        ("not-ascii", "\u00e9", event + "parse"),
        ("half-character", "\ud800", event + "parse"),
    ]


def cases() -> list[Case]:
    """Certificates, each with the time and the enrollers it is judged by."""
    with tempfile.TemporaryDirectory() as directory:
        issuer = Issuer(directory)
        issuer.authority("foreign", 30)
        issuer.key("other")
        issuer.authority("renewed", 90, "enroller-key")
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        found: list[Case] = []

        def add(
            name: str,
            certificate: str,
            expect: str,
            days: int = 1,
            enrollers: tuple[str, ...] = ("foreign", "enroller"),
        ) -> None:
            if name == "foreign-issuer":
                enrollers = ("enroller",)
            found.append(
                {
                    "name": name,
                    "certificate": certificate,
                    "ak": issuer.public("ak"),
                    "enrollers": [issuer.pem(one) for one in enrollers],
                    "now": (now + datetime.timedelta(days=days)).isoformat(),
                    "host": "node1",
                    "host_id": UUID,
                    "expect": expect,
                }
            )

        good, long = issuer.issue(), issuer.issue(days=60)
        validity = "core.akcert.validity"
        add("good", good, "ok")
        add(
            "critical-key-usage",
            issuer.issue((*GOOD, "keyUsage=critical,digitalSignature")),
            "ok",
        )
        add("expired", good, validity, 8)
        add("not-yet", good, validity, -1)
        add("enroller-expired", long, validity, 40)
        both = ("enroller", "renewed")
        add("enroller-renewed", long, "ok", 40, both)
        add("enrollers-none", good, "core.akcert.issuer", 1, ())
        for name, certificate, expect in _bad(issuer):
            add(name, certificate, expect)
        return found

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

"""Vectors of credentials and of EK certificates."""

import hashlib
import struct
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mh_core.tpm import credential, public
from tpm_parts.cases import (
    flipped,
    unsized,
)
from tpm_parts.device import Tpm

Case = dict[str, Any]


EK_ATTRIBUTES = 0x000300B2
# TPM2_PolicySecret(endorsement), the policy of every EK template.
EK_POLICY = bytes.fromhex(
    "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
)


def _software_ek(curve: int | None) -> tuple[bytes, str]:
    """TPMT_PUBLIC of an EK in software, and its private key in PEM."""
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    head = struct.pack(
        ">HHIH", 1 if curve is None else 0x23, 0xB, EK_ATTRIBUTES, 32
    )
    head += EK_POLICY + struct.pack(">HHHH", 6, 128, 0x43, 0x10)
    if curve is None:
        key = rsa.generate_private_key(65537, 2048)
        modulus = key.public_key().public_numbers().n.to_bytes(256, "big")
        head += struct.pack(">HIH", 2048, 0, 256) + modulus
    else:
        size = 32 if curve == 3 else 48
        key = ec.generate_private_key(
            ec.SECP256R1() if curve == 3 else ec.SECP384R1()
        )
        point = key.public_key().public_numbers()
        head += struct.pack(">HH", curve, 0x10)
        for value in (point.x, point.y):
            head += struct.pack(">H", size) + value.to_bytes(size, "big")
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return head, pem.decode("ascii")


def credentials(tpm: Tpm) -> list[Case]:
    """Credentials both ways: theirs to be opened, ours opened by the TPM."""
    cases: list[Case] = []
    name = tpm.read("ak.name")
    secret = hashlib.sha256(b"credential").digest()
    tpm.write("secret.bin", secret)
    for title, curve in (("RSA-2048", None), ("P-256", 3), ("P-384", 4)):
        area, pem = _software_ek(curve)
        tpm.write("ek.pub", struct.pack(">H", len(area)) + area)
        tpm.run(
            *("tpm2_makecredential", "-Q", "-T", "none", "-u", "ek.pub"),
            *("-s", "secret.bin", "-n", name.hex(), "-o", "made.cred"),
        )
        blob = tpm.read("made.cred")
        (size,) = struct.unpack(">H", blob[8:10])
        cases.append(
            {
                "name": f"tpm2_makecredential for {title}",
                "kind": "open",
                "expect": "ok",
                "command": tpm.last(),
                "ek": area.hex(),
                "ek_private": pem,
                "object_name": name.hex(),
                "credential": secret.hex(),
                "identity": blob[10 : 10 + size].hex(),
                "secret": unsized(blob[10 + size :]).hex(),
            }
        )
    tpm.run(
        *("tpm2_createek", "-Q", "-G", "ecc", "-c", "ek256.ctx"),
        *("-u", "ek256.pub"),
    )
    for title, handle, password in (
        ("RSA-2048", "0x81010001", False),
        ("P-256", "ek256.ctx", False),
        ("P-384", "0x81010016", True),
    ):
        tpm.run(
            *("tpm2_readpublic", "-Q", "-c", handle, "-f", "tss"),
            *("-o", "ek.pub"),
        )
        ek = public.Public.parse(unsized(tpm.read("ek.pub")))
        draw = hashlib.shake_256(title.encode()).digest
        identity, encrypted = credential.make_credential(
            ek, secret, name, draw
        )
        tpm.write(
            "ours.cred",
            struct.pack(">IIH", 0xBADCC0DE, 1, len(identity))
            + identity
            + struct.pack(">H", len(encrypted))
            + encrypted,
        )
        authorisation: tuple[str, ...] = ()
        if not password:
            tpm.run(
                *("tpm2_startauthsession", "--policy-session"),
                *("-S", "policy.ctx"),
                keep=True,
            )
            tpm.run(
                *("tpm2_policysecret", "-Q", "-S", "policy.ctx", "-c", "e"),
                keep=True,
            )
            authorisation = ("-P", "session:policy.ctx")
        tpm.run(
            *("tpm2_activatecredential", "-Q", "-c", "ak.ctx", "-C", handle),
            *("-i", "ours.cred", "-o", "opened.bin", *authorisation),
        )
        if tpm.read("opened.bin") != secret:
            raise SystemExit("tpm2_activatecredential opened something else")
        cases.append(
            {
                "name": f"tpm2_activatecredential with {title}",
                "kind": "make",
                "expect": "ok",
                "command": tpm.last(),
                "ek": ek.raw.hex(),
                "object_name": name.hex(),
                "credential": secret.hex(),
                "random": f"SHAKE256({title})",
                "identity": identity.hex(),
                "secret": encrypted.hex(),
            }
        )
    good = cases[-1]
    s = "core.tpm.credential.size"
    for title, expect, changes in (
        (
            "EK is an AK",
            "core.tpm.ek.attributes",
            {"ek": unsized(tpm.read("ak.pub")).hex()},
        ),
        (
            "EK is a bind key",
            "core.tpm.ek.attributes",
            {"ek": unsized(tpm.read("bind.pub")).hex()},
        ),
        ("credential empty", s, {"credential": ""}),
        ("credential too long", s, {"credential": "11" * 49}),
        ("Name empty", s, {"object_name": ""}),
    ):
        cases.append({**good, "name": title, "expect": expect, **changes})
    return cases


def certificates(tpm: Tpm) -> list[Case]:
    """The EK certificates swtpm_localca issues."""
    cases: list[Case] = []
    authority = tpm.authority
    common = {
        "intermediates": [(authority / "issuercert.pem").read_text()],
        "roots": [(authority / "swtpm-localca-rootca-cert.pem").read_text()],
        "now": "2035-01-01T00:00:00+00:00",
    }
    for title, handle, file in (
        ("RSA-2048", "0x81010001", "ek-rsa2048.crt"),
        ("P-384", "0x81010016", "ek-secp384r1.crt"),
    ):
        tpm.run(
            *("tpm2_readpublic", "-Q", "-c", handle, "-f", "tss"),
            *("-o", "ek.pub"),
        )
        cases.append(
            {
                "name": title,
                "expect": "ok",
                "command": f"swtpm_setup --create-ek-cert; {tpm.last()}",
                "ek": unsized(tpm.read("ek.pub")).hex(),
                "certificate": (tpm.state / file).read_bytes().hex(),
                **common,
            }
        )
    good = cases[0]
    p = "core.tpm.ekcert."
    der = str(good["certificate"])
    for title, expect, changes in (
        ("no intermediate", p + "chain", {"intermediates": []}),
        ("no roots", p + "chain", {"roots": []}),
        (
            "intermediate is listed as root",
            "ok",
            {"intermediates": [], "roots": common["intermediates"]},
        ),
        (
            "root only as intermediate",
            p + "chain",
            {
                "intermediates": [*common["intermediates"], *common["roots"]],
                "roots": [],
            },
        ),
        (
            "certificate of another EK",
            p + "key",
            {"certificate": cases[1]["certificate"]},
        ),
        (
            "certificate's signature changed",
            p + "chain",
            {"certificate": flipped(der)},
        ),
        ("certificate truncated", p + "parse", {"certificate": der[:-2]}),
        (
            "certificate with an octet more",
            p + "parse",
            {"certificate": der + "01"},
        ),
        (
            "certificate padded as in NV",
            "ok",
            {"certificate": der + "ff" * 100},
        ),
        (
            "not valid yet",
            p + "validity",
            {"now": "2001-01-01T00:00:00+00:00"},
        ),
        ("no time zone", p + "now", {"now": "2035-01-01T00:00:00"}),
        (
            "EK is an AK",
            "core.tpm.ek.attributes",
            {"ek": unsized(tpm.read("ak.pub")).hex()},
        ),
    ):
        cases.append({**good, "name": title, "expect": expect, **changes})
    return cases

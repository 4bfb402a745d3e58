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

"""Vectors of Names and of policy digests."""

import struct
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from mh_core.tpm import build
from tpm_parts.cases import (
    RH_ENDORSEMENT,
    RH_NULL,
    flipped,
    pcr_values,
    unsized,
)
from tpm_parts.device import Tpm

Case = dict[str, Any]


def publics(tpm: Tpm) -> list[Case]:
    """Names, qualified names and PEM as tpm2_readpublic gives them."""
    cases = []
    for name, hierarchy in (
        ("ak", RH_ENDORSEMENT),
        ("ak-rsapss", RH_ENDORSEMENT),
        ("ak-p384", RH_ENDORSEMENT),
        ("bind", RH_NULL),
        ("bind-rsa", RH_NULL),
    ):
        tpm.run(
            *("tpm2_readpublic", "-Q", "-c", f"{name}.ctx", "-f", "pem"),
            *("-o", "key.pem"),
        )
        cases.append(
            {
                "name": name,
                "expect": "ok",
                "command": tpm.last(),
                "public": unsized(tpm.read(f"{name}.pub")).hex(),
                "object_name": tpm.read(f"{name}.name").hex(),
                "qualified_name": tpm.read(f"{name}.qname").hex(),
                "hierarchy": hierarchy,
                "pem": tpm.read("key.pem").decode("ascii"),
            }
        )
    area = str(cases[0]["public"])
    rsa_area = str(cases[1]["public"])
    p = "core.tpm.public."
    for title, expect, data in (
        ("empty", "core.tpm.reader.short", ""),
        ("truncated", "core.tpm.reader.short", area[:-2]),
        ("an octet more", "core.tpm.reader.trailing", area + "00"),
        ("with its TPM2B size", p + "type", f"{len(area) // 2:04x}" + area),
        ("symmetric key", p + "type", "0025" + area[4:]),
        ("named by SHA-1", "core.tpm.hash", area[:4] + "0004" + area[8:]),
        (
            "curve P-521",
            "core.tpm.curve",
            area.replace("00030010", "00050010"),
        ),
        ("point not on the curve", p + "key", flipped(area)),
        (
            "point at infinity",
            p + "key",
            area[:-136] + ("0020" + "00" * 32) * 2,
        ),
        ("modulus short", p + "key", rsa_area[:-516] + "00ff" + "11" * 255),
        ("modulus even", p + "key", rsa_area[:-2] + "00"),
        (
            "policy of 31 octets",
            p + "policy",
            area[:16] + "001f" + "00" * 31 + area[20:],
        ),
    ):
        cases.append({"name": title, "expect": expect, "public": data})
    return cases


def policies(tpm: Tpm) -> list[Case]:
    """Policy digests of a trial session."""
    cases: list[Case] = []
    for indices in ((0,), (0, 2, 4, 7), (0, 2, 4, 7, 8, 9), (7, 17, 23)):
        listed = ",".join(str(index) for index in indices)
        tpm.run(
            *("tpm2_createpolicy", "-Q", "--policy-pcr", "-L", "p.bin"),
            *("-l", f"sha256:{listed}"),
        )
        cases.append(
            {
                "name": f"PCR {listed}",
                "kind": "pcr",
                "expect": "ok",
                "command": tpm.last(),
                "pcrs": pcr_values(tpm, indices),
                "start": "00" * 32,
                "policy": tpm.read("p.bin").hex(),
            }
        )
    first = cases[0]
    tpm.run("tpm2_startauthsession", "-S", "trial.ctx", keep=True)
    for listed in ("0", "0,2,4,7"):
        tpm.run(
            *("tpm2_policypcr", "-Q", "-S", "trial.ctx", "-L", "p.bin"),
            *("-l", f"sha256:{listed}"),
            keep=True,
        )
    tpm.flush()
    cases.append(
        {
            **cases[1],
            "name": "PCR 0, then PCR 0,2,4,7",
            "command": tpm.last(2),
            "start": first["policy"],
            "policy": tpm.read("p.bin").hex(),
        }
    )
    # The policy authority's key never was in a TPM.
    key = ec.derive_private_key(0x1234567, ec.SECP256R1())
    area = build.ecc_public_area(key.public_key())
    tpm.write("authority.pub", struct.pack(">H", len(area)) + area)
    tpm.run(
        *("tpm2_loadexternal", "-Q", "-C", "n", "-u", "authority.pub"),
        *("-c", "authority.ctx", "-n", "authority.name"),
    )
    loaded = tpm.last()
    for title, ref in (
        ("without policyRef", b""),
        ("with policyRef", b"hosts"),
    ):
        tpm.write("ref.bin", ref)
        tpm.run("tpm2_startauthsession", "-S", "trial.ctx", keep=True)
        tpm.run(
            *("tpm2_policyauthorize", "-Q", "-S", "trial.ctx", "-L", "a.bin"),
            *("-i", "p.bin", "-n", "authority.name"),
            *(("-q", "ref.bin") if ref else ()),
        )
        cases.append(
            {
                "name": f"authorize {title}",
                "kind": "authorize",
                "expect": "ok",
                "command": f"{loaded}; {tpm.last()}",
                "public": area.hex(),
                "key_name": tpm.read("authority.name").hex(),
                "ref": ref.hex(),
                "policy": tpm.read("a.bin").hex(),
            }
        )
    for title, expect, pcrs in (
        ("no PCR", "core.tpm.pcr.empty", {}),
        ("PCR 24", "core.tpm.pcr.index", {"24": "00" * 32}),
        ("PCR -1", "core.tpm.pcr.index", {"-1": "00" * 32}),
        ("short value", "core.tpm.pcr.value", {"0": "00" * 20}),
    ):
        cases.append({**first, "name": title, "expect": expect, "pcrs": pcrs})
    return cases

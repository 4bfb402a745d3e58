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

"""Parts of the TPM vectors: keys, quotes and certifications."""

import struct
from typing import Any

from tpm_parts.device import Tpm

PCRS = (0, 2, 4, 7)
AK = (
    "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
    "|noda"
)
BIND = "fixedtpm|fixedparent|sensitivedataorigin|decrypt|noda"
RH_NULL, RH_ENDORSEMENT, RH_OWNER = 0x40000007, 0x4000000B, 0x40000001

# tpm2_quote does not take it from the key.
SCHEMES = {
    "ak-rsapss": ("--scheme", "rsapss"),
    "ak-sha1": ("-g", "sha1"),
    "ak-p384": ("-g", "sha384"),
}

Case = dict[str, Any]


def unsized(data: bytes) -> bytes:
    """Contents of a TPM2B."""
    (size,) = struct.unpack(">H", data[:2])
    if size != len(data) - 2:
        raise SystemExit("not a TPM2B")
    return data[2:]


def primary(
    tpm: Tpm,
    name: str,
    kind: str,
    attributes: str,
    hierarchy: str = "e",
    policy: str = "",
) -> bytes:
    """Create a primary key; return its TPMT_PUBLIC."""
    extra = ("-L", policy) if policy else ()
    tpm.run(
        *("tpm2_createprimary", "-Q", "-C", hierarchy, "-G", kind),
        *("-a", attributes, "-c", f"{name}.ctx", *extra),
    )
    tpm.run(
        *("tpm2_readpublic", "-Q", "-c", f"{name}.ctx", "-f", "tss"),
        *("-o", f"{name}.pub", "-n", f"{name}.name", "-q", f"{name}.qname"),
    )
    return unsized(tpm.read(f"{name}.pub"))


def pcr_values(tpm: Tpm, indices: tuple[int, ...]) -> dict[str, str]:
    """Read PCRs with tpm2_pcrread."""
    listed = ",".join(str(i) for i in indices)
    tpm.run("tpm2_pcrread", "-Q", f"sha256:{listed}", "-o", "pcrs.bin")
    data = tpm.read("pcrs.bin")
    return {
        str(index): data[32 * at : 32 * at + 32].hex()
        for at, index in enumerate(indices)
    }


def quote(
    tpm: Tpm, name: str, nonce: bytes, selection: str = "sha256:0,2,4,7"
) -> Case:
    """Quote with tpm2_quote."""
    tpm.run(
        *("tpm2_quote", "-Q", "-c", f"{name}.ctx", "-l", selection),
        *("-q", nonce.hex(), "-m", "q.msg", "-s", "q.sig", "-f", "tss"),
        *SCHEMES.get(name, ()),
    )
    return {
        "command": tpm.last(),
        "ak": unsized(tpm.read(f"{name}.pub")).hex(),
        "attest": tpm.read("q.msg").hex(),
        "signature": tpm.read("q.sig").hex(),
        "extra": nonce.hex(),
    }


def certify(tpm: Tpm, ak: str, name: str, nonce: bytes) -> Case:
    """Certify with TPM2_Certify sent by tpm2_send.

    tpm2_certify of this version has a fixed qualifyingData.
    """
    tpm.run(
        "tpm2_readpublic", "-Q", "-c", f"{ak}.ctx", keep=True
    )  # loads it: 0x80000000
    tpm.flush()
    for key in (name, ak):
        tpm.run("tpm2_readpublic", "-Q", "-c", f"{key}.ctx", keep=True)
    handles = [
        int(line.split()[-1], 16)
        for line in tpm.run(
            "tpm2_getcap", "handles-transient", keep=True
        ).splitlines()
    ]
    if handles != [0x80000000, 0x80000001]:
        raise SystemExit(f"unexpected handles {handles}")
    password = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
    body = (
        struct.pack(">III", 0x148, *handles)
        + struct.pack(">I", 2 * len(password))
        + 2 * password
        + struct.pack(">H", len(nonce))
        + nonce
        + struct.pack(">H", 0x10)
    )
    command = struct.pack(">HI", 0x8002, len(body) + 6) + body
    reply = tpm.run("tpm2_send", data=command)
    (code,) = struct.unpack(">I", reply[6:10])
    if code:
        raise SystemExit(f"TPM2_Certify: {code:#x}")
    (size,) = struct.unpack(">I", reply[10:14])
    rest = reply[14 : 14 + size]
    (length,) = struct.unpack(">H", rest[:2])
    return {
        "command": f"tpm2_send < TPM2_Certify({name}, {ak}, nonce)",
        "ak": unsized(tpm.read(f"{ak}.pub")).hex(),
        "attest": rest[2 : 2 + length].hex(),
        "signature": rest[2 + length :].hex(),
        "extra": nonce.hex(),
        "certified": unsized(tpm.read(f"{name}.pub")).hex(),
    }


def flipped(value: str, at: int = -1) -> str:
    """One bit of a hexadecimal string changed."""
    data = bytearray.fromhex(value)
    data[at] ^= 1
    return data.hex()


def quotes(tpm: Tpm) -> list[Case]:
    """Good quotes of each key type, and named bad ones."""
    nonce = bytes(range(32))
    values = pcr_values(tpm, PCRS)
    common = {"pcrs": values, "selection": list(PCRS)}
    cases = [
        {"name": kind, "expect": "ok", **quote(tpm, kind, nonce), **common}
        for kind in ("ak", "ak-rsassa", "ak-rsapss")
    ]
    good = cases[0]
    q = "core.tpm.quote."

    def bad(name: str, expect: str, **changes: Any) -> None:
        cases.append({**good, "name": name, "expect": expect, **changes})

    bad("attest truncated", q + "signature", attest=good["attest"][:-2])
    bad(
        "attest with an octet more",
        q + "signature",
        attest=good["attest"] + "00",
    )
    bad("attest changed", q + "signature", attest=flipped(good["attest"]))
    bad(
        "attest with another magic",
        q + "signature",
        attest=flipped(good["attest"], 0),
    )
    bad("attest empty", q + "signature", attest="")
    sig = good["signature"]
    bad("signature truncated", "core.tpm.reader.short", signature=sig[:-2])
    bad(
        "signature with an octet more",
        "core.tpm.reader.trailing",
        signature=sig + "00",
    )
    bad("signature changed", q + "signature", signature=flipped(sig))
    bad(
        "signature says SHA-1", q + "signature", signature="00180004" + sig[8:]
    )
    bad(
        "signature says RSASSA",
        q + "signature",
        signature="0014000b" + sig[8:],
    )
    bad("other nonce", q + "extra-data", extra=flipped(good["extra"]))
    bad("no nonce", q + "extra-data", extra="")
    bad("other PCR value", q + "pcr-digest", pcrs={**values, "4": "11" * 32})
    bad(
        "PCR values exchanged",
        q + "pcr-digest",
        pcrs={**values, "0": values["4"], "4": values["0"]},
    )
    bad(
        "PCR value short",
        "core.tpm.pcr.value",
        pcrs={**values, "4": "11" * 31},
    )
    bad(
        "PCR missing",
        q + "selection",
        pcrs={k: v for k, v in values.items() if k != "4"},
    )
    bad("PCR too many", q + "selection", pcrs={**values, "9": "00" * 32})
    bad("fewer PCRs wanted", q + "selection", selection=[0, 2, 4])
    bad(
        "more PCRs wanted",
        q + "selection",
        selection=[0, 2, 4, 7, 9],
        pcrs={**values, "9": "00" * 32},
    )
    bad("no PCRs wanted", q + "selection", selection=[], pcrs={})
    bad("PCR 24 wanted", "core.tpm.pcr.index", selection=[0, 24])
    bad("other AK", q + "signature", ak=quote(tpm, "ak2", nonce)["ak"])
    for name, selection in (
        ("SHA-1 bank", "sha1:0,2,4,7"),
        ("two banks", "sha1:0,2,4,7+sha256:0,2,4,7"),
        ("other PCRs", "sha256:0,2,4,9"),
    ):
        made = quote(tpm, "ak", nonce, selection)
        bad(f"quote of {name}", q + "selection", **made)
    made = certify(tpm, "ak", "bind", nonce)
    bad(
        "certification instead",
        q + "type",
        **{k: v for k, v in made.items() if k != "certified"},
    )
    for key, title in (
        ("ak-open", "unrestricted key"),
        ("ak-sha1", "SHA-1 scheme"),
        ("ak-dup", "key that may be duplicated"),
        ("ak-p384", "P-384 key"),
    ):
        made = quote(tpm, key, nonce)
        bad(f"AK is {title}", "core.tpm.ak.attributes", **made)
    return cases


def certifications(tpm: Tpm) -> list[Case]:
    """Good certifications of bind keys, and named bad ones."""
    nonce = bytes(range(32, 64))
    policy = {"policy": tpm.read("policy.bin").hex(), "hierarchy": RH_NULL}
    cases = [
        {
            "name": name,
            "expect": "ok",
            **certify(tpm, ak, bind, nonce),
            **policy,
        }
        for name, ak, bind in (
            ("P-256 bind key", "ak", "bind"),
            ("RSA bind key", "ak", "bind-rsa"),
            ("RSA AK", "ak-rsassa", "bind"),
        )
    ]
    good = cases[0]
    p = "core.tpm.certify."
    b = "core.tpm.bind.attributes"

    def bad(name: str, expect: str, **changes: Any) -> None:
        cases.append({**good, "name": name, "expect": expect, **changes})

    bad("other nonce", p + "extra-data", extra=flipped(good["extra"]))
    bad("attest changed", p + "signature", attest=flipped(good["attest"]))
    bad("attest truncated", p + "signature", attest=good["attest"][:-2])
    bad("other key claimed", p + "name", certified=cases[1]["certified"])
    area = good["certified"]
    bad("public area changed", p + "name", certified=flipped(area, 7))
    bad(
        "point not on the curve",
        "core.tpm.public.key",
        certified=flipped(area),
    )
    bad("public area truncated", "core.tpm.reader.short", certified=area[:-2])
    bad(
        "public area with an octet more",
        "core.tpm.reader.trailing",
        certified=area + "00",
    )
    bad("other policy wanted", "core.tpm.bind.policy", policy="22" * 32)
    bad("no policy wanted", "core.tpm.bind.policy", policy="")
    made = quote(tpm, "ak", nonce)
    bad("quote instead", p + "type", **made)
    for key, title, expect in (
        ("bind-auth", "with userWithAuth", b),
        ("bind-sign", "that also signs", b),
        ("bind-storage", "that is a storage key", b),
        ("bind-dup", "that may be duplicated", b),
        ("bind-p384", "of P-384", b),
        ("bind-null", "without a scheme", b),
        ("bind-nopolicy", "without a policy", "core.tpm.bind.policy"),
        ("bind-owner", "in the owner hierarchy", p + "hierarchy"),
    ):
        made = certify(tpm, "ak", key, nonce)
        bad(f"bind key {title}", expect, **made)
    tpm.run(
        *("tpm2_certify", "-Q", "-c", "bind.ctx", "-C", "ak.ctx"),
        *("-g", "sha256", "-o", "c.att", "-s", "c.sig", "-f", "tss"),
    )
    bad(
        "tpm2_certify's own extraData",
        p + "extra-data",
        command=tpm.last(),
        attest=tpm.read("c.att").hex(),
        signature=tpm.read("c.sig").hex(),
    )
    return cases


def keys(tpm: Tpm) -> None:
    """Create every key the cases above use."""
    tpm.run(
        *("tpm2_createpolicy", "-Q", "--policy-pcr", "-L", "policy.bin"),
        *("-l", "sha256:0,2,4,7"),
    )
    ecc, rsa = "ecc256:ecdsa-sha256:null", "rsa2048"
    for name, kind, attributes in (
        ("ak", ecc, AK),
        ("ak2", ecc, AK.replace("|noda", "")),
        ("ak-rsassa", f"{rsa}:rsassa-sha256:null", AK),
        ("ak-rsapss", f"{rsa}:rsapss-sha256:null", AK),
        ("ak-open", ecc, AK.replace("|restricted", "")),
        ("ak-sha1", "ecc256:ecdsa-sha1:null", AK),
        ("ak-dup", ecc, AK.replace("fixedtpm|fixedparent|", "")),
        ("ak-p384", "ecc384:ecdsa-sha384:null", AK),
    ):
        primary(tpm, name, kind, attributes)
    ecdh = "ecc256:ecdh-sha256:null"
    for name, kind, attributes, hierarchy in (
        ("bind", ecdh, BIND, "n"),
        ("bind-rsa", f"{rsa}:oaep-sha256:null", BIND, "n"),
        ("bind-auth", ecdh, BIND + "|userwithauth", "n"),
        ("bind-sign", "ecc256:null:null", BIND + "|sign", "n"),
        ("bind-storage", "ecc256:null:aes128cfb", BIND + "|restricted", "n"),
        ("bind-dup", ecdh, BIND.replace("fixedtpm|fixedparent|", ""), "n"),
        ("bind-p384", "ecc384:ecdh-sha256:null", BIND, "n"),
        ("bind-null", "ecc256:null:null", BIND, "n"),
        ("bind-owner", ecdh, BIND, "o"),
    ):
        primary(tpm, name, kind, attributes, hierarchy, "policy.bin")
    primary(tpm, "bind-nopolicy", ecdh, BIND, "n")

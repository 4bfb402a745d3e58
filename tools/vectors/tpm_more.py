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

"""Parts of the TPM vectors: names, policies, credentials, certificates."""

import hashlib
import struct
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tpm_cases import RH_ENDORSEMENT, RH_NULL, flipped, pcr_values, unsized
from tpm_device import Tpm

from mh_core.tpm import build, credential, eventlog, public

Case = dict[str, Any]
EK_ATTRIBUTES = 0x000300B2
# TPM2_PolicySecret(endorsement), the policy of every EK template.
EK_POLICY = bytes.fromhex(
    "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
)


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


def _agile(events: list[tuple[int, int, bytes]]) -> bytes:
    """A log with SHA-1 and SHA-256 digests, not written by mh_core."""
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 0, 2)
    spec += struct.pack("<IHHHHB", 2, 4, 20, 11, 32, 0)
    log = struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec
    for pcr, kind, data in events:
        digests = (
            hashlib.sha1(data, usedforsecurity=False).digest(),
            hashlib.sha256(data).digest(),
        )
        log += struct.pack(
            "<IIIH20sH32sI",
            pcr,
            kind,
            2,
            4,
            digests[0],
            11,
            digests[1],
            len(data),
        )
        log += data
    return log


def _replayed(tpm: Tpm, log: bytes) -> dict[str, str]:
    """PCR values of the SHA-256 bank by tpm2_eventlog."""
    tpm.write("log.bin", log)
    text = tpm.run("tpm2_eventlog", "log.bin").decode("utf-8", "replace")
    values, bank = {}, ""
    for line in text[text.index("\npcrs:") :].splitlines():
        key, _, value = line.strip().partition(":")
        if not value.strip():
            bank = key
        elif bank == "sha256":
            values[key.strip()] = value.strip().removeprefix("0x")
    return values


def logs(tpm: Tpm) -> list[Case]:
    """Synthetic logs, replayed by tpm2_eventlog."""
    e = eventlog
    wide = "root=/dev/dm-0 quiet\0".encode("utf-16-le")
    grub = b"/vmlinuz root=/dev/dm-0 ro"
    events = [
        (0, e.EV_S_CRTM_VERSION, "1.0\0".encode("utf-16-le")),
        (0, e.EV_POST_CODE, b"POST CODE"),
        (4, e.EV_EFI_ACTION, b"Calling EFI Application from Boot Option"),
        *((pcr, e.EV_SEPARATOR, bytes(4)) for pcr in range(8)),
        (8, e.EV_IPL, b"grub_cmd: linux /vmlinuz\0"),
        (8, e.EV_IPL, b"kernel_cmdline: " + grub + b"\0"),
        (9, e.EV_IPL, b"/vmlinuz\0"),
        (12, e.EV_IPL, wide),
    ]
    line, uki = grub.decode(), "root=/dev/dm-0 quiet"
    real = e.build_measured(
        (pcr, kind, data, grub if grub in data else data)
        for pcr, kind, data in events
    )
    wrong = e.build_measured(
        (pcr, kind, data, b"else" if grub in data else data)
        for pcr, kind, data in events
    )
    locality = [(0, e.EV_NO_ACTION, b"StartupLocality\0\3"), *events]
    cases = [
        {
            "name": title,
            "expect": "ok",
            "command": "tpm2_eventlog log.bin",
            "log": log.hex(),
            "pcrs": _replayed(tpm, log),
            "command_lines": lines,
        }
        for title, log, lines in (
            ("SHA-256 log", e.build(events), [line, uki]),
            ("SHA-1 and SHA-256 log", _agile(events), [line, uki]),
            ("GRUB hashes without the prefix", real, [line, uki]),
            ("command line that was not measured", wrong, [uki]),
            ("no events", e.build([]), []),
        )
    ]
    # tpm2_eventlog of this version ignores the locality; a TPM does not.
    tpm.restart(3)
    for pcr, _, data in events:
        digest = hashlib.sha256(data).hexdigest()
        tpm.run("tpm2_pcrextend", f"{pcr}:sha256={digest}")
    cases.append(
        {
            "name": "startup locality 3",
            "expect": "ok",
            "command": "swtpm_ioctl -l 3; TPM2_Startup; tpm2_pcrextend",
            "log": e.build(locality).hex(),
            "pcrs": pcr_values(tpm, (*range(8), 8, 9, 12)),
            "command_lines": [line, uki],
        }
    )
    log = e.build(events)
    head = len(e.build([]))
    p = "core.tpm.eventlog."
    short = "core.tpm.reader.short"

    def patched(at: int, new: bytes) -> bytes:
        return log[:at] + new + log[at + len(new) :]

    for title, expect, data in (
        ("empty", short, b""),
        ("truncated", short, log[:-1]),
        ("an octet more", short, log + b"\0"),
        ("SHA-1 format", p + "header", patched(32, b"Spec ID Event02\0")),
        ("no algorithms", p + "header", patched(56, bytes(4))),
        ("4 G algorithms", p + "header", patched(56, b"\xff" * 4)),
        ("SHA-256 of 20 octets", p + "algorithm", patched(62, b"\x14\0")),
        ("no SHA-256", p + "algorithm", patched(60, b"\4\0\x14\0")),
        ("PCR 24", p + "event", patched(head, b"\x18")),
        ("two digests", p + "event", patched(head + 8, b"\2")),
        ("no digest", p + "event", patched(head + 8, b"\0")),
        ("digest of SHA-384", p + "event", patched(head + 12, b"\x0c")),
        ("event of 4 GiB", short, patched(head + 46, b"\xff" * 4)),
        (
            "late startup locality",
            p + "locality",
            e.build([*events, *locality[:1]]),
        ),
        (
            "startup locality 9",
            p + "locality",
            e.build([(0, 3, b"StartupLocality\0\x09")]),
        ),
        (
            "command line with a zero",
            p + "command-line",
            e.build([(8, 13, b"kernel_cmdline: a\0b")]),
        ),
        (
            "command line not UTF-8",
            p + "command-line",
            e.build([(8, 13, b"kernel_cmdline: \xff")]),
        ),
    ):
        cases.append({"name": title, "expect": expect, "log": data.hex()})
    return cases

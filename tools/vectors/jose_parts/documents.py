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

"""Results, manifests and digests, from the protocol page's words."""

import hashlib
import struct
from typing import Any

from jwcrypto import jwk

from jose_parts import openssl
from jose_parts.signed import Signer
from jose_parts.text import b64u, dump

Case = dict[str, Any]
Json = dict[str, Any]
CLAIMS = "core.result.claims"
NOW = 1_800_000_000
UUID = "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10"
OTHER = "d5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51"


def _without(claims: Json, name: str) -> Json:
    return {key: value for key, value in claims.items() if key != name}


def results() -> list[Case]:
    """Attestation results: each claim as it should be, and not."""
    signer = Signer()
    bind = jwk.JWK.generate(kty="EC", crv="P-256")
    bind_jwk = bind.export_public(as_dict=True)
    other = jwk.JWK.generate(kty="EC", crv="P-256").export_public(as_dict=True)
    good: Json = {
        "iss": "https://attest.test",
        "aud": "https://kms.test:15543",
        "iat": NOW,
        "exp": NOW + 60,
        "eat_nonce": b64u(b"n" * 32),
        "eat_profile": "urn:mystery-hill:host-appraisal:1",
        "cnf": {"jwk": bind_jwk},
        "mh_request": "ab" * 32,
        "mh_host": "node1",
        "mh_host_id": UUID,
        "mh_level": "trusted",
        "mh_tags": {"geo": "eu-1"},
    }
    found: list[Case] = []

    def add(
        name: str, expect: str, claims: Json, now: int = NOW, **header: str
    ) -> None:
        header.setdefault("typ", "eat+jwt")
        found.append(
            {
                "name": name,
                "expect": expect,
                "token": signer.token(dump(claims), **header),
                "jwk": signer.key.export_public(as_dict=True),
                "issuer": good["iss"],
                "audience": good["aud"],
                "nonce": (b"n" * 32).hex(),
                "request_digest": "ab" * 32,
                "bind_jwk": bind_jwk,
                "now": now,
            }
        )

    add("good", "ok", good)
    add("boot-only", "ok", good | {"mh_level": "boot-only"})
    add("last-second", "ok", good, NOW + 59)
    add("clock-behind", "ok", good, NOW - 30)
    add("with-kid", "ok", good | {"cnf": {"jwk": bind_jwk | {"kid": "x"}}})
    for name in good:
        add(f"without-{name}", CLAIMS, _without(good, name))
    time = "core.result.time"
    for name, expect, changes in (
        ("issuer", "core.result.issuer", {"iss": "https://attest.tesT"}),
        ("issuer-list", CLAIMS, {"iss": [good["iss"]]}),
        ("audience", "core.result.audience", {"aud": "https://kms.test"}),
        ("audience-list", CLAIMS, {"aud": [good["aud"]]}),
        ("nonce", "core.result.nonce", {"eat_nonce": b64u(b"m" * 32)}),
        ("nonce-short", CLAIMS, {"eat_nonce": b64u(b"n" * 31)}),
        ("nonce-padded", CLAIMS, {"eat_nonce": b64u(b"n" * 32) + "="}),
        ("nonces", CLAIMS, {"eat_nonce": [b64u(b"n" * 32)]}),
        ("profile", CLAIMS, {"eat_profile": "urn:a:b"}),
        ("request", "core.result.request", {"mh_request": "aa" * 32}),
        ("request-upper", CLAIMS, {"mh_request": "AB" * 32}),
        ("bind-key", "core.result.bind-key", {"cnf": {"jwk": other}}),
        ("bind-key-and-more", CLAIMS, {"cnf": {"jwk": bind_jwk, "kid": ""}}),
        ("bind-key-none", "core.jose.key", {"cnf": {"jwk": {}}}),
        ("bind-key-text", CLAIMS, {"cnf": {"jwk": "x"}}),
        ("level", CLAIMS, {"mh_level": "untrusted"}),
        ("level-upper", CLAIMS, {"mh_level": "Trusted"}),
        ("level-true", CLAIMS, {"mh_level": True}),
        ("host-number", CLAIMS, {"mh_host": 1}),
        ("host-lines", CLAIMS, {"mh_host": "a\nb"}),
        ("host-id", CLAIMS, {"mh_host_id": UUID.upper()}),
        ("tags-list", CLAIMS, {"mh_tags": []}),
        ("tag-number", CLAIMS, {"mh_tags": {"geo": 1}}),
        ("tag-null", CLAIMS, {"mh_tags": {"geo": None}}),
        ("tag-control", CLAIMS, {"mh_tags": {"geo": "\x1b[2J"}}),
        ("unknown-claim", CLAIMS, {"nbf": NOW}),
        ("life-61", time, {"exp": NOW + 61}),
        ("life-none", time, {"exp": NOW}),
        ("life-negative", time, {"exp": NOW - 1}),
        ("exp-text", CLAIMS, {"exp": str(NOW + 60)}),
        ("exp-true", CLAIMS, {"exp": True}),
        ("exp-float", "core.json.number", {"exp": NOW + 59.5}),
        ("exp-huge", CLAIMS, {"exp": 10**4000}),
        ("iat-negative", CLAIMS, {"iat": -1}),
    ):
        add(name, expect, good | changes)  # type: ignore[operator]
    add("expired", time, good, NOW + 60)
    add("not-yet", time, good, NOW - 31)
    add("another-kind", "core.jose.token", good, typ="mh-vm-report+jwt")
    add("plain-jwt", "core.jose.token", good, typ="JWT")
    return found


def manifests() -> list[Case]:
    """Manifests signed by both tools, and documents that are none."""
    signer = Signer()
    event, policy = "core.manifest", "core.launch-policy"
    good: Json = {
        "version": 1,
        "image": UUID,
        "key_id": OTHER,
        "format": "qcow2+luks",
        "size": 1,
        "virtual_size": 512,
        "sha256": "12" * 32,
        "sha512": "34" * 64,
        "launch_policy": {
            "config_drives": ["56" * 32],
            "user_data": ["78" * 32],
            "snapshots": True,
        },
        "measure": "modules",
        "modules": {"p1:/boot/vmlinuz": "9a" * 32},
    }
    limit = 1 << 50
    found: list[Case] = []

    def add(name: str, expect: str, document: Any, token: str = "") -> None:
        token = token or signer.token(dump(document))
        found.append(
            {
                "name": name,
                "expect": expect,
                "token": token,
                "jwk": signer.key.export_public(as_dict=True),
                "document": document,
                "digest": openssl.sha256(token.encode()),
            }
        )

    add("jwcrypto", "ok", good)
    add("openssl", "ok", good, signer.by_openssl(dump(good))[0])
    most = {"size": limit, "virtual_size": limit}
    most |= {"measure": "ciphertext", "modules": {}}
    add("largest", "ok", good | most)
    add("luks", "ok", good | {"format": "luks"})
    for name in good:
        add(f"without-{name}", event, _without(good, name))
    for name, expect, changes in (
        ("version-2", event, {"version": 2}),
        ("version-true", event, {"version": True}),
        ("format-raw", event, {"format": "raw"}),
        ("size-0", event, {"size": 0}),
        ("size-negative", event, {"size": -1}),
        ("size-huge", event, {"size": limit + 1}),
        ("size-text", event, {"size": "1"}),
        ("size-true", event, {"size": True}),
        ("size-digits", event, {"size": 10**4000}),
        ("virtual-511", event, {"virtual_size": 511}),
        ("virtual-huge", event, {"virtual_size": limit + 1}),
        ("sha256-short", event, {"sha256": "12" * 31}),
        ("sha256-upper", event, {"sha256": "AB" * 32}),
        ("sha512-is-256", event, {"sha512": "12" * 32}),
        ("image-braces", event, {"image": "{" + UUID + "}"}),
        ("image-urn", event, {"image": "urn:uuid:" + UUID}),
        ("key-bare", event, {"key_id": OTHER.replace("-", "")}),
        ("modules-list", event, {"modules": []}),
        ("module-empty", event, {"modules": {"": "9a" * 32}}),
        ("module-long", event, {"modules": {"p1:/" + "a" * 4352: "9a" * 32}}),
        ("module-nul", event, {"modules": {"p1:/a\0": "9a" * 32}}),
        ("module-line", event, {"modules": {"p1:/a\n": "9a" * 32}}),
        ("module-path", event, {"modules": {"/a": "9a" * 32}}),
        ("module-relative", event, {"modules": {"p1:a": "9a" * 32}}),
        ("module-partition-0", event, {"modules": {"p0:/a": "9a" * 32}}),
        ("module-area", event, {"modules": {"p1:@any": "9a" * 32}}),
        ("module-digest", event, {"modules": {"p1:/a": "9a"}}),
        ("module-null", event, {"modules": {"p1:/a": None}}),
        ("measure-unknown", event, {"measure": "some"}),
        ("measure-nothing", event, {"measure": "ciphertext"}),
        ("measure-no-modules", event, {"modules": {}}),
        ("policy-list", event, {"launch_policy": []}),
        ("policy-member", policy, {"launch_policy": {"console": True}}),
        ("policy-number", policy, {"launch_policy": {"snapshots": 1}}),
        ("policy-any", policy, {"launch_policy": {"user_data": ["*"]}}),
        ("policy-empty", policy, {"launch_policy": {"user_data": [""]}}),
        (
            "policy-upper",
            policy,
            {"launch_policy": {"user_data": ["AB" * 32]}},
        ),
        (
            "policy-many",
            policy,
            {"launch_policy": {"user_data": ["12" * 32] * 65}},
        ),
        ("member-unknown", event, {"kernel": "/boot/vmlinuz"}),
    ):
        add(name, expect, good | changes)  # type: ignore[operator]
    add("list", event, [good])
    add("text", event, "x")
    return found


def _sized(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def digests() -> list[Case]:
    """Digests over length-prefixed fields."""
    request: Json = {
        "key_id": OTHER,
        "kms_origin": "https://kms.test:15543",
        "purpose": "launch",
        "instance": UUID,
        "project": "p\u00e4",
        "user": "u",
        "host": "node1",
        "image": OTHER,
        "manifest_digest": "12" * 32,
        "disks": [
            {"name": "disk", "luks_uuid": UUID},
            {"name": "disk.config", "luks_uuid": OTHER},
        ],
        "ticket": "dGlja2V0",
    }
    names = "key_id kms_origin purpose instance project user host image"
    fields = [request[name] for name in names.split()]
    fields += [request["manifest_digest"], request["ticket"], "2"]
    for disk in request["disks"]:
        fields += [disk["name"], disk["luks_uuid"]]
    claims: Json = {
        "instance": UUID,
        "project": "p",
        "image": OTHER,
        "key_id": OTHER,
        "kms_origin": "https://kms.test:15543",
        "host": "node1",
        "purpose": "launch",
        "manifest_digest": "12" * 32,
        "domain_digest": "34" * 32,
        "request_digest": "56" * 32,
        "started_at": NOW,
        "measured": {"ciphertext": "ok"},
    }
    policy: Json = {
        "config_drives": ["12" * 32],
        "user_data": [],
        "snapshots": False,
    }
    found = [
        _digest("request", request, *(field.encode() for field in fields)),
        _digest("vm-claims", claims, dump(claims)),
        _digest("launch-policy", policy, dump(policy)),
    ]
    head = bytes(32)
    for number in range(1, 4):
        record = dump({"event": f"kms.test.{number}", "seq": number})
        data = _sized(head, record)
        head = hashlib.sha256(data).digest()
        found.append(
            {
                "name": f"audit-{number}",
                "kind": "audit",
                "document": record.decode(),
                "digest": openssl.sha256(data),
                "expect": "ok",
            }
        )
    return found


def _digest(kind: str, document: Json, *parts: bytes) -> Case:
    data = _sized(f"mh/{kind}/v1".encode(), *parts)
    return {
        "name": kind,
        "kind": kind,
        "document": document,
        "digest": openssl.sha256(data),
        "expect": "ok",
    }

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

"""JWS: signed documents, good ones and bad ones."""

import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import utils
from jwcrypto import jwk, jws

from jose_parts import openssl
from jose_parts.text import (
    b64u,
    dump,
    flipped,
    left_over,
    unb64u,
    with_header,
    with_part,
)

Case = dict[str, Any]
KIND = "core.jose.token"
SIGNATURE = "core.jose.signature"
TYP = "mh-manifest+jws"
ALGS = ["ES256", "ES384", "HS256", "RS256"]


class Signer:
    """Signs with one key, or as told."""

    def __init__(self) -> None:
        self.key = jwk.JWK.generate(kty="EC", crv="P-256")

    def token(
        self,
        payload: bytes,
        key: jwk.JWK | None = None,
        drop: str = "",
        **changes: Any,
    ) -> str:
        """By jwcrypto, with header members changed before it is made."""
        members = {
            "alg": "ES256",
            "typ": TYP,
            "kid": self.key.thumbprint(),
            **changes,
        }
        members.pop(drop, None)
        made = jws.JWS(payload)
        made.allowed_algs = ALGS
        made.add_signature(key or self.key, None, json.dumps(members))
        return str(made.serialize(compact=True))

    def by_openssl(self, payload: bytes, typ: str = TYP) -> tuple[str, bytes]:
        """The same with the openssl command; also the signature in DER."""
        members = {"alg": "ES256", "typ": typ, "kid": self.key.thumbprint()}
        head = f"{b64u(dump(members))}.{b64u(payload)}"
        der = openssl.sign(self.key, head.encode())
        r, s = utils.decode_dss_signature(der)
        raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return f"{head}.{b64u(raw)}", der


class Cases:
    """Collects cases about one key and one payload."""

    def __init__(self) -> None:
        self.signer = Signer()
        self.payload = dump({"hello": "world", "n": 1})
        self.found: list[Case] = []

    def add(self, name: str, token: str, expect: str) -> None:
        self.found.append(
            {
                "name": name,
                "token": token,
                "typ": TYP,
                "jwk": self.signer.key.export_public(as_dict=True),
                "payload": self.payload.hex(),
                "expect": expect,
            }
        )


def _good(cases: Cases) -> tuple[str, bytes]:
    token, der = cases.signer.by_openssl(cases.payload)
    cases.add("jwcrypto", cases.signer.token(cases.payload), "ok")
    cases.add("openssl", token, "ok")
    return token, der


def _algorithms(cases: Cases) -> None:
    """Another algorithm than the one there is."""
    signer, payload = cases.signer, cases.payload
    good = signer.token(payload)
    none = with_header(good, alg="none")
    cases.add("alg-none", with_part(none, 2, ""), KIND)
    cases.add("alg-none-signed", none, KIND)
    cases.add("alg-None", with_header(good, alg="None"), KIND)
    cases.add("alg-lower", with_header(good, alg="es256"), KIND)
    cases.add("alg-list", with_header(good, alg=["ES256"]), KIND)
    cases.add("alg-missing", with_header(good, "alg"), KIND)
    public = signer.key.export_public()
    for name, secret in (
        ("jwk", public.encode()),
        ("pem", signer.key.export_to_pem()),
        ("x", unb64u(json.loads(public)["x"])),
    ):
        shared = jwk.JWK(kty="oct", k=b64u(secret))
        token = signer.token(payload, shared, alg="HS256")
        cases.add(f"hs256-{name}", token, KIND)
        renamed = with_header(token, alg="ES256")
        cases.add(f"hs256-{name}-renamed", renamed, SIGNATURE)
    wide = jwk.JWK.generate(kty="EC", crv="P-384")
    cases.add("es384", signer.token(payload, wide, alg="ES384"), KIND)
    rsa = jwk.JWK.generate(kty="RSA", size=2048)
    cases.add("rs256", signer.token(payload, rsa, alg="RS256"), KIND)


def _headers(cases: Cases) -> None:
    """Headers that point at a key, or want something of the reader."""
    signer, payload = cases.signer, cases.payload
    good = signer.token(payload)
    foreign = jwk.JWK.generate(kty="EC", crv="P-256")
    theirs = foreign.export_public(as_dict=True)
    kid = foreign.thumbprint()

    def lured(**members: Any) -> str:
        return signer.token(payload, foreign, **members)

    for name, token, expect in (
        ("typ-other", signer.token(payload, typ="eat+jwt"), KIND),
        ("typ-upper", signer.token(payload, typ=TYP.upper()), KIND),
        ("typ-missing", signer.token(payload, drop="typ"), KIND),
        ("typ-changed", with_header(good, typ=TYP + "x"), KIND),
        ("jwk", lured(jwk=theirs), KIND),
        ("jku", lured(jku="https://a.test/jwks"), KIND),
        ("x5c", lured(x5c=["AA=="]), KIND),
        ("x5u", lured(x5u="https://a.test/pem"), KIND),
        ("crit", with_header(good, crit=["exp"], exp=1), KIND),
        ("crit-b64", with_header(good, crit=["b64"], b64=False), KIND),
        ("b64", with_header(good, b64=False), KIND),
        ("zip", with_header(good, zip="DEF"), KIND),
        ("member-unknown", signer.token(payload, cty="json"), KIND),
        ("kid-foreign", lured(kid=kid), SIGNATURE),
        ("kid-borrowed", lured(), SIGNATURE),
        ("kid-other", signer.token(payload, kid=kid), SIGNATURE),
        ("kid-missing", signer.token(payload, drop="kid"), KIND),
        ("kid-number", with_header(good, kid=5), SIGNATURE),
        ("kid-list", with_header(good, kid=[kid]), SIGNATURE),
        ("kid-null", with_header(good, kid=None), SIGNATURE),
        ("kid-path", with_header(good, kid="../../dev/null"), SIGNATURE),
    ):
        cases.add(name, token, expect)


def _texts(cases: Cases, good: str, der: bytes) -> None:
    """Bytes that are not those that were signed."""
    head, body, signature = good.split(".")
    twice = unb64u(head)[:-1] + b',"alg":"none"}'
    longer = cases.signer.token(cases.payload + b" ").split(".")[2]
    zero = b64u(bytes(64))
    order = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"
    top = b64u(bytes.fromhex(order) * 2)
    flattened = {"protected": head, "payload": body, "signature": signature}
    for name, token, expect in (
        ("payload-flipped", flipped(good, 1), SIGNATURE),
        ("payload-empty", with_part(good, 1, ""), SIGNATURE),
        (
            "payload-added",
            f"{head}.{b64u(cases.payload + b' ')}.{signature}",
            SIGNATURE,
        ),
        ("payload-left-over", with_part(good, 1, left_over(body)), KIND),
        ("payload-padded", with_part(good, 1, body + "="), KIND),
        ("header-left-over", with_part(good, 0, left_over(head)), KIND),
        (
            "header-spaced",
            with_part(good, 0, b64u(unb64u(head) + b" ")),
            SIGNATURE,
        ),
        (
            "header-twice",
            with_part(good, 0, b64u(twice)),
            "core.json.duplicate",
        ),
        ("header-list", with_part(good, 0, b64u(b'["alg"]')), KIND),
        ("header-text", with_part(good, 0, b64u(b"alg")), "core.json.syntax"),
        ("header-long", with_header(good, typ="m" * 5000), "core.json.size"),
        ("header-huge-number", with_part(good, 0, b64u(b"1" * 4090)), KIND),
        ("header-float", with_header(good, kid=1.5), "core.json.number"),
        (
            "header-bom",
            with_part(good, 0, b64u(b"\xef\xbb\xbf" + unb64u(head))),
            "core.json.syntax",
        ),
        (
            "header-utf-16",
            with_part(good, 0, b64u("{}".encode("utf-16"))),
            "core.json.syntax",
        ),
        ("signature-flipped", flipped(good, 2), SIGNATURE),
        ("signature-empty", with_part(good, 2, ""), SIGNATURE),
        ("signature-zero", with_part(good, 2, zero), SIGNATURE),
        ("signature-order", with_part(good, 2, top), SIGNATURE),
        ("signature-der", with_part(good, 2, b64u(der)), SIGNATURE),
        (
            "signature-short",
            with_part(good, 2, b64u(unb64u(signature)[:63])),
            SIGNATURE,
        ),
        (
            "signature-long",
            with_part(good, 2, b64u(unb64u(signature) + b"\0")),
            SIGNATURE,
        ),
        ("signature-of-another", with_part(good, 2, longer), SIGNATURE),
        (
            "signature-left-over",
            with_part(good, 2, left_over(signature)),
            KIND,
        ),
        ("signature-padded", good + "==", KIND),
        ("signature-plus", with_part(good, 2, "+" + signature[1:]), KIND),
        ("space-before", " " + good, KIND),
        ("line-after", good + "\n", KIND),
        ("not-ascii", good + "\u00e9", KIND),
        (
            "digit-not-ascii",
            with_part(good, 2, "\uff11" + signature[1:]),
            KIND,
        ),
        ("half-character", good + "\ud800", KIND),
        ("truncated", good[:-6], SIGNATURE),
        ("two-parts", f"{head}.{body}", KIND),
        ("four-parts", good + ".", KIND),
        ("five-parts", good + "..", KIND),
        ("detached", f"{head}..{signature}", SIGNATURE),
        ("empty", "", KIND),
        ("dots", "..", "core.json.syntax"),
        ("json", dump(flattened).decode(), KIND),
    ):
        cases.add(name, token, expect)


def cases() -> list[Case]:
    """Tokens about one key."""
    made = Cases()
    good, der = _good(made)
    _algorithms(made)
    _headers(made)
    _texts(made, good, der)
    return made.found

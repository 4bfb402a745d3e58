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

"""JSON Web Keys: thumbprints, and keys that are none."""

from typing import Any

from jwcrypto import jwk

from jose_parts.text import b64u, unb64u

Case = dict[str, Any]

# RFC 7638, section 3.1
_RFC7638 = {
    "kty": "RSA",
    "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86"
    "zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc"
    "5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZ"
    "gnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZ"
    "u0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
    "e": "AQAB",
    "alg": "RS256",
    "kid": "2011-04-29",
}


def _case(name: str, key: Any, expect: str = "core.jose.key") -> Case:
    return {"name": name, "jwk": key, "expect": expect}


def cases() -> list[Case]:
    """Keys, with the thumbprint where they are good."""
    found = []
    for name, made in (
        ("ec", jwk.JWK.generate(kty="EC", crv="P-256")),
        ("rsa-2048", jwk.JWK.generate(kty="RSA", size=2048)),
        ("rsa-3072", jwk.JWK.generate(kty="RSA", size=3072)),
        ("rfc7638", jwk.JWK(**_RFC7638)),
    ):
        public = made.export_public(as_dict=True)
        case = _case(name, public, "ok")
        found.append(case | {"thumbprint": made.thumbprint()})
    if found[-1]["thumbprint"] != (
        "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    ):
        raise RuntimeError("jwcrypto disagrees with RFC 7638")
    ec, rsa = found[0]["jwk"], found[1]["jwk"]
    for curve in ("P-384", "P-521", "secp256k1"):
        key = jwk.JWK.generate(kty="EC", crv=curve)
        found.append(_case(curve.lower(), key.export_public(as_dict=True)))
    okp = jwk.JWK.generate(kty="OKP", crv="X25519")
    small = jwk.JWK.generate(kty="RSA", size=1024)
    found += [
        _case("okp", okp.export_public(as_dict=True)),
        _case("rsa-1024", small.export_public(as_dict=True)),
        _case("oct", jwk.JWK.generate(kty="oct", size=256).export(True, True)),
        _case("not-on-the-curve", ec | {"y": ec["x"]}),
        _case("point-zero", ec | {"x": b64u(bytes(32)), "y": b64u(bytes(32))}),
        _case("leading-zero", ec | {"x": b64u(b"\0" + unb64u(ec["x"]))}),
        _case("short", ec | {"x": b64u(unb64u(ec["x"])[1:])}),
        _case("padded", ec | {"x": ec["x"] + "="}),
        _case("y-missing", {k: v for k, v in ec.items() if k != "y"}),
        _case("x-number", ec | {"x": 5}),
        _case("x-not-ascii", ec | {"x": "\u00e9" * 43}),
        _case("x-half-character", ec | {"x": "\ud800"}),
        _case("kty-list", ec | {"kty": ["EC"]}),
        _case("rsa-leading-zero", rsa | {"n": b64u(b"\0" + unb64u(rsa["n"]))}),
        _case("rsa-exponent-1", rsa | {"e": "AQ"}),
        _case("rsa-exponent-even", rsa | {"e": "BA"}),
        _case("rsa-exponent-long", rsa | {"e": rsa["n"]}),
        _case("rsa-modulus-long", rsa | {"n": "_" * 1023 + "8"}),
        _case("none", None),
        _case("list", []),
        _case("text", "EC"),
        _case("empty", {}),
    ]
    return found

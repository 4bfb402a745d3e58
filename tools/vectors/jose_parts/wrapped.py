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

"""JWE: wrapped keys, good ones and bad ones."""

import json
import secrets
from typing import Any

from jwcrypto import jwe, jwk

from jose_parts import openssl
from jose_parts.text import (
    b64u,
    dump,
    flipped,
    header,
    left_over,
    unb64u,
    with_header,
    with_part,
)

Case = dict[str, Any]
KIND = "core.jose.token"
UNWRAP = "core.jose.unwrap"
APV = "core.jose.apv"
ALGS = ["ECDH-ES", "ECDH-ES+A256KW", "ECDH-ES+A128KW", "RSA-OAEP-256"]
ALGS += ["RSA1_5", "RSA-OAEP", "dir", "A256GCM", "A128GCM", "DEF"]


def _key(**kind: Any) -> jwk.JWK:
    return jwk.JWK.generate(**kind)


class Maker:
    """Makes tokens to one key."""

    def __init__(self, key: jwk.JWK, alg: str) -> None:
        self.key = key
        self.alg = alg
        self.apv = secrets.token_bytes(32)
        self.plaintext = secrets.token_bytes(33)
        self.good = self.token()

    def token(
        self, key: jwk.JWK | None = None, drop: str = "", **changes: Any
    ) -> str:
        """By jwcrypto, with header members changed before it is made."""
        members = {
            "alg": self.alg,
            "enc": "A256GCM",
            "typ": "mh",
            "kid": self.key.thumbprint(),
            "apv": b64u(self.apv),
            **changes,
        }
        members.pop(drop, None)
        made = jwe.JWE(
            self.plaintext, protected=json.dumps(members), algs=ALGS
        )
        made.add_recipient(key or self.key)
        return str(made.serialize(compact=True))

    def case(self, name: str, token: str, expect: str) -> Case:
        return {
            "name": f"{self.alg.split('-')[0].lower()}-{name}",
            "alg": self.alg,
            "jwk": self.key.export_private(as_dict=True),
            "token": token,
            "apv": self.apv.hex(),
            "expect": expect,
        }

    def opened(self, name: str, plaintext: bytes) -> Case:
        """A good case, with what openssl says the TPM would answer."""
        self.plaintext = plaintext
        token = self.token()
        if self.alg == "RSA-OAEP-256":
            sent = unb64u(token.split(".")[1])
            secret = openssl.decrypt(self.key, sent)
        else:
            peer = jwk.JWK(**header(token)["epk"])
            secret = openssl.derive(self.key, peer)
        case = self.case(name, token, "ok")
        return case | {"plaintext": plaintext.hex(), "secret": secret.hex()}

    def common(self) -> list[Case]:
        """What is bad whatever the algorithm."""
        good = self.good
        foreign = _key(**_kind(self.alg))
        protected = good.split(".")[0]
        twice = unb64u(protected)[:-1] + b',"typ":"mh"}'
        other = b64u(secrets.token_bytes(32))
        return [
            self.case(name, token, expect)
            for name, token, expect in (
                ("apv-other", self.token(apv=other), APV),
                ("apv-changed", with_header(good, apv=other), APV),
                ("apv-missing", self.token(drop="apv"), APV),
                ("apv-removed", with_header(good, "apv"), APV),
                ("apv-not-ascii", with_header(good, apv="\u00e9"), APV),
                (
                    "apv-half",
                    with_header(good, apv="\ud800"),
                    "core.json.syntax",
                ),
                ("apv-number", with_header(good, apv=5), APV),
                (
                    "apv-padded",
                    with_header(good, apv=b64u(self.apv) + "="),
                    APV,
                ),
                ("key-other", self._to(foreign), UNWRAP),
                ("kid-other", with_header(good, kid=other), UNWRAP),
                ("kid-missing", self.token(drop="kid"), KIND),
                ("kid-number", with_header(good, kid=5), KIND),
                ("typ-changed", with_header(good, typ="MH"), UNWRAP),
                ("typ-missing", self.token(drop="typ"), KIND),
                ("zip", self.token(zip="DEF"), KIND),
                ("enc-other", self.token(enc="A128GCM"), KIND),
                ("enc-changed", with_header(good, enc="A128GCM"), KIND),
                ("enc-unknown", with_header(good, enc="none"), KIND),
                ("alg-unknown", with_header(good, alg="none"), KIND),
                ("alg-list", with_header(good, alg=[self.alg]), KIND),
                ("alg-case", with_header(good, alg=self.alg.lower()), KIND),
                ("crit", with_header(good, crit=["exp"], exp=1), KIND),
                ("jku", with_header(good, jku="https://a.test"), KIND),
                ("jwk", with_header(good, jwk={}), KIND),
                ("apu", self.token(apu="QWxpY2U"), KIND),
                ("p2c", with_header(good, p2c=1 << 30), KIND),
                (
                    "header-twice",
                    with_part(good, 0, b64u(twice)),
                    "core.json.duplicate",
                ),
                ("header-list", with_part(good, 0, b64u(b"[]")), KIND),
                ("header-empty", with_part(good, 0, ""), "core.json.syntax"),
                (
                    "header-deep",
                    with_part(good, 0, b64u(b"[" * 4000)),
                    "core.json.syntax",
                ),
                (
                    "header-long",
                    with_header(good, typ="m" * 5000),
                    "core.json.size",
                ),
                ("header-padded", with_part(good, 0, protected + "="), KIND),
                ("key-flipped", flipped(good, 1), UNWRAP),
                ("key-empty", with_part(good, 1, ""), UNWRAP),
                ("iv-flipped", flipped(good, 2), UNWRAP),
                ("iv-short", with_part(good, 2, b64u(bytes(8))), KIND),
                ("iv-long", with_part(good, 2, b64u(bytes(16))), KIND),
                ("text-flipped", flipped(good, 3), UNWRAP),
                ("text-empty", with_part(good, 3, ""), UNWRAP),
                ("tag-flipped", flipped(good, 4), UNWRAP),
                ("tag-short", with_part(good, 4, b64u(bytes(12))), KIND),
                ("tag-moved", _tag_moved(good), KIND),
                ("tag-left-over", _left_over(good, 4), KIND),
                ("padded", good + "=", KIND),
                ("space", good + " ", KIND),
                ("line", good + "\n", KIND),
                ("not-ascii", good + "\u00e9", KIND),
                ("half-character", good + "\ud800", KIND),
                ("truncated", good[:-5], KIND),
                ("three-parts", ".".join(good.split(".")[:3]), KIND),
                ("six-parts", good + ".", KIND),
                ("empty", "", KIND),
                ("dots", "....", "core.json.syntax"),
                ("json", _json(good), KIND),
            )
        ]

    def _to(self, key: jwk.JWK) -> str:
        return self.token(key, kid=key.thumbprint())


def _kind(alg: str) -> dict[str, Any]:
    if alg.startswith("RSA"):
        return {"kty": "RSA", "size": 2048}
    return {"kty": "EC", "crv": "P-256"}


def _tag_moved(token: str) -> str:
    """The same bytes, divided elsewhere between ciphertext and tag."""
    text, tag = map(unb64u, token.split(".")[3:])
    return with_part(
        with_part(token, 3, b64u(text + tag[:1])), 4, b64u(tag[1:])
    )


def _left_over(token: str, index: int) -> str:
    return with_part(token, index, left_over(token.split(".")[index]))


def _json(token: str) -> str:
    """The flattened JSON serialization (RFC 7516, section 7.2.2)."""
    names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
    return dump(dict(zip(names, token.split("."), strict=True))).decode()


def _agreement() -> list[Case]:
    made = Maker(_key(kty="EC", crv="P-256"), "ECDH-ES+A256KW")
    good, epk = made.good, header(made.good)["epk"]
    p384 = _key(kty="EC", crv="P-384")
    okp = _key(kty="OKP", crv="X25519")
    rsa = _key(kty="RSA", size=2048)

    def sender(**changes: Any) -> str:
        return with_header(good, epk={**epk, **changes})

    zero = b64u(bytes(32))
    bad = (
        ("epk-p384", made.token(p384), KIND),
        ("epk-x25519", made.token(okp), KIND),
        ("epk-renamed", sender(crv="P-384"), KIND),
        ("epk-not-on-the-curve", sender(y=epk["x"]), KIND),
        ("epk-zero", sender(x=zero, y=zero), KIND),
        ("epk-above-the-field", sender(x=b64u(b"\xff" * 32)), KIND),
        ("epk-own", with_header(good, epk=_public(made.key)), UNWRAP),
        ("epk-private", sender(d=epk["x"]), KIND),
        ("epk-kid", sender(kid="x"), KIND),
        ("epk-short", sender(x=b64u(unb64u(epk["x"])[1:])), KIND),
        ("epk-long", sender(x=b64u(b"\0" + unb64u(epk["x"]))), KIND),
        ("epk-number", sender(x=1), KIND),
        ("epk-kty", sender(kty="RSA"), KIND),
        ("epk-text", with_header(good, epk="x"), KIND),
        ("epk-missing", with_header(good, "epk"), KIND),
        ("direct-agreement", made.token(alg="ECDH-ES"), KIND),
        ("key-wrap-128", made.token(alg="ECDH-ES+A128KW"), KIND),
        ("dir", made.token(_key(kty="oct", size=256), alg="dir"), KIND),
        ("rsa", made.token(rsa, alg="RSA-OAEP-256"), KIND),
        ("rsa-with-epk", with_header(good, alg="RSA-OAEP-256"), KIND),
    )
    return [
        made.opened("short", b"k"),
        made.opened("key", secrets.token_bytes(32)),
        made.opened("long", secrets.token_bytes(3000)),
        *made.common(),
        *(made.case(*one) for one in bad),
    ]


def _public(key: jwk.JWK) -> dict[str, Any]:
    found: dict[str, Any] = key.export_public(as_dict=True)
    return found


def _renamed(token: str) -> str:
    return with_header(token, alg="RSA-OAEP-256")


def _transport() -> list[Case]:
    made = Maker(_key(kty="RSA", size=2048), "RSA-OAEP-256")
    epk = _public(_key(kty="EC", crv="P-256"))
    bad = (
        ("rsa1_5", made.token(alg="RSA1_5"), KIND),
        ("rsa1_5-renamed", _renamed(made.token(alg="RSA1_5")), UNWRAP),
        ("sha1", made.token(alg="RSA-OAEP"), KIND),
        ("sha1-renamed", _renamed(made.token(alg="RSA-OAEP")), UNWRAP),
        ("epk", with_header(made.good, epk=epk), KIND),
        ("agreement", with_header(made.good, alg="ECDH-ES+A256KW"), KIND),
    )
    return [
        made.opened("key", secrets.token_bytes(32)),
        made.opened("long", secrets.token_bytes(3000)),
        *made.common(),
        *(made.case(*one) for one in bad),
    ]


def cases() -> list[Case]:
    """Tokens to a P-256 key and to an RSA key."""
    return _agreement() + _transport()

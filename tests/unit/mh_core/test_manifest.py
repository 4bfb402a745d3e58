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

"""Manifests and launch policies."""

import dataclasses
import hashlib
from typing import Any

import pytest
from hypothesis import strategies as st

from mh_core import jose, manifest
from mh_core.encoding import canonical_json, parse_json
from mh_core.errors import InputError
from mh_core.launch_policy import LaunchPolicy
from mh_core.manifest import Container, Manifest
from tests.unit.mh_core import vectors
from tests.unit.mh_core.vectors import Case, given, outcome

KEY = jose.generate_key()
DIGEST = "12" * 32
GOOD = Manifest(
    image="4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10",
    key_id="d5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51",
    format="qcow2+luks",
    size=1,
    virtual_size=512,
    sha256=DIGEST,
    sha512="34" * 64,
)
_HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
POLICIES = st.builds(
    LaunchPolicy,
    config_drives=st.lists(_HEX, max_size=3).map(tuple),
    user_data=st.lists(_HEX, max_size=3).map(tuple),
    snapshots=st.booleans(),
)
_VOLUMES = st.sampled_from(["disk", "p1", "p128", "vg-0/root.a"])
_PATHS = st.text("abc/.-_\u00e9:@ ", max_size=20).map("/{}".format)
_NAMES = st.tuples(
    _VOLUMES, _PATHS | st.sampled_from(["@raw", "@table", "@boot-area"])
).map(":".join)
_PLAIN = st.builds(
    Manifest,
    image=st.uuids().map(str),
    key_id=st.uuids().map(str),
    format=st.sampled_from(["qcow2+luks", "luks"]),
    size=st.integers(1, 1 << 50),
    virtual_size=st.integers(512, 1 << 50),
    sha256=_HEX,
    sha512=st.binary(min_size=64, max_size=64).map(bytes.hex),
    launch_policy=POLICIES,
    measure=st.sampled_from(["modules", "boot", "all"]),
    modules=st.dictionaries(_NAMES, _HEX, min_size=1, max_size=3),
)
MANIFESTS = _PLAIN | _PLAIN.map(
    lambda one: dataclasses.replace(one, measure="ciphertext", modules={})
)
CONTAINERS = st.builds(
    Container,
    envelope=_HEX,
    disk=st.just("disk.qcow2"),
    offset=st.integers(1, 100).map(lambda n: n * 512),
    size=st.integers(1, 1 << 20),
    sha256=_HEX,
)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@vectors.parameters("core/manifest")
def test_vector(case: Case) -> None:
    def run() -> None:
        found = Manifest.verify(case["token"], [case["jwk"]])
        assert found.to_dict() == case["document"]

    assert outcome(run) == case["expect"]
    assert manifest.digest(case["token"]) == case["digest"]


@given(MANIFESTS)
def test_what_is_signed_is_read(one: Manifest) -> None:
    assert Manifest.verify(one.sign(KEY), [KEY]) == one
    document = canonical_json(one.to_dict())
    assert canonical_json(Manifest.parse(document).to_dict()) == document


def test_signed_by_nobody_known() -> None:
    token = GOOD.sign(KEY)
    other = jose.generate_key()
    assert outcome(Manifest.verify, token, [other]) == "core.jose.signature"
    assert outcome(Manifest.verify, token, []) == "core.jose.signature"


def test_another_document_of_the_same_signer() -> None:
    token = jose.sign(canonical_json(GOOD.to_dict()), KEY, "eat+jwt")
    assert outcome(Manifest.verify, token, [KEY]) == "core.jose.token"


def test_many_modules() -> None:
    def parse(count: int) -> str:
        modules = {f"p1:/{number:x}": DIGEST for number in range(count)}
        asked = {"measure": "boot", "modules": modules}
        data = canonical_json({**GOOD.to_dict(), **asked})
        return outcome(Manifest.parse, data)

    assert parse(manifest.MAX_MODULES) == "ok"
    assert parse(manifest.MAX_MODULES + 1) == "core.manifest"


def test_a_document_too_large() -> None:
    data = canonical_json(GOOD.to_dict()) + b" " * 8 * 1024 * 1024
    assert outcome(Manifest.parse, data) == "core.json.size"


def test_the_digest_is_of_the_token_as_it_is_sent() -> None:
    token = GOOD.sign(KEY)
    expected = hashlib.sha256(token.encode()).hexdigest()
    assert manifest.digest(token) == expected
    assert manifest.digest(token + " ") != expected
    for text in ("\u00e9", "\ud800"):
        assert outcome(manifest.digest, text) == "core.manifest"


@given(st.sampled_from(sorted(GOOD.to_dict())), _JSON)
def test_any_member_of_any_kind(name: str, value: Any) -> None:
    data = canonical_json({**GOOD.to_dict(), name: value})
    found = outcome(Manifest.parse, data)
    assert found in (
        "ok",
        "core.manifest",
        "core.launch-policy",
        "core.json.syntax",
    )
    if found == "ok":
        assert Manifest.parse(data).to_dict()[name] == {
            "launch_policy": LaunchPolicy().to_dict()
            if name == "launch_policy" and not value
            else value
        }.get(name, value)


@given(st.binary(max_size=80) | _JSON.map(canonical_json))
def test_any_bytes(data: bytes) -> None:
    found = outcome(Manifest.parse, data)
    assert found == "core.manifest" or found.startswith("core.json.")


# -- launch policy -----------------------------------------------------------


def test_nothing_is_allowed_by_default() -> None:
    policy = LaunchPolicy.parse({})
    assert policy == LaunchPolicy((), (), False)


@given(POLICIES)
def test_a_policy_is_read_as_it_was_written(policy: LaunchPolicy) -> None:
    again = LaunchPolicy.parse(parse_json(canonical_json(policy.to_dict())))
    assert again == policy
    assert again.digest() == policy.digest()


@given(POLICIES, POLICIES)
def test_digests_of_different_policies_differ(
    one: LaunchPolicy, other: LaunchPolicy
) -> None:
    assert (one.digest() == other.digest()) == (one == other)


def test_a_config_drive_is_no_user_data() -> None:
    one = LaunchPolicy(config_drives=(DIGEST,))
    assert one.digest() != LaunchPolicy(user_data=(DIGEST,)).digest()
    assert one.digest() != LaunchPolicy().digest()
    assert one.digest() != dataclasses.replace(one, snapshots=True).digest()


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {"snapshots": 1},
        {"snapshots": "true"},
        {"snapshots": None},
        {"config_drives": None},
        {"config_drives": {}},
        {"config_drives": DIGEST},
        {"config_drives": [None]},
        {"config_drives": [""]},
        {"config_drives": ["*"]},
        {"config_drives": [DIGEST.upper().replace("1", "A")]},
        {"config_drives": [DIGEST + "\n"]},
        {"user_data": [DIGEST[:-1]]},
        {"user_data": [DIGEST] * 65},
        {"rescue": True},
    ],
    ids=repr,
)
def test_a_policy_that_is_none(document: Any) -> None:
    assert outcome(LaunchPolicy.parse, document) == "core.launch-policy"


@given(_JSON)
def test_any_policy(document: Any) -> None:
    found = outcome(LaunchPolicy.parse, document)
    assert found == ("ok" if document == {} else "core.launch-policy")


@given(MANIFESTS, CONTAINERS)
def test_an_ova_comes_back(one: Manifest, container: Container) -> None:
    one = dataclasses.replace(one, size=1 << 30, container=container)
    token = one.sign(KEY)
    assert Manifest.verify(token, [jose.public(KEY)]) == one
    assert (one.disk_size, one.disk_sha256) == (
        container.size,
        container.sha256,
    )


INSIDE = {
    "format": "ova",
    "envelope": DIGEST,
    "disk": "disk.qcow2",
    "offset": 1536,
    "size": 512,
    "sha256": DIGEST,
}


@pytest.mark.parametrize(
    "change",
    [
        {"format": "zip"},
        {"disk": "../disk"},
        {"disk": ""},
        {"offset": 0},
        {"offset": 1537},
        {"offset": -512},
        {"size": 0},
        {"size": 4096},
        {"sha256": DIGEST[2:]},
        {"envelope": None},
        {"more": 1},
    ],
)
def test_a_container_that_is_none(change: dict[str, Any]) -> None:
    document = {**GOOD.to_dict(), "size": 4096}
    good = {**document, "container": INSIDE}
    assert Manifest.parse(canonical_json(good)).disk_size == 512
    bad = {**document, "container": {**INSIDE, **change}}
    with pytest.raises(InputError):
        Manifest.parse(canonical_json(bad))


def test_what_an_unverified_manifest_claims() -> None:
    """For bounds and names only; whatever it is, no exception."""
    token = dataclasses.replace(GOOD, format="luks", size=77).sign(KEY)
    assert manifest.claimed_driver(token) == "luks"
    assert manifest.claimed_size(token) == 77
    for bad in ("", "a.b.c", "a", "..", "e30.W10.x", "e30.e30.x"):
        assert manifest.claimed_driver(bad) == "qcow2"
        assert manifest.claimed_size(bad) == 0


@given(st.text(max_size=80))
def test_any_token_claims_something(token: str) -> None:
    assert manifest.claimed_driver(token) in ("qcow2", "luks")
    assert manifest.claimed_size(token) >= 0

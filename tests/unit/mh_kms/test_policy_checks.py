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

"""The contract of policy checks, over every driver."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import stevedore
from stevedore import ExtensionManager

from mh_core.errors import Denied, Unavailable
from mh_core.evidence import release_claims, verify_host
from mh_core.result import AttestationResult
from mh_core.tpm.quote import LABEL_RELEASE, extra_data
from mh_kms import policy_checks
from mh_kms.policy_checks.base import Facts, PolicyCheck
from mh_kms.release_policy import BUILT_IN, ReleasePolicy
from tests.fixture import softtpm

CHECKS = sorted(ExtensionManager(policy_checks.NAMESPACE).names())

#: One change of the facts for each check that must make it deny.
BREAKS: dict[str, list[dict[str, Any]]] = {
    "level": [
        {"result": {"level": "boot-only"}},
        {"result": {"level": "unheard-of"}},
        {"policy": {"levels": ()}},
    ],
    "project": [
        {"request": {"project": "b"}},
        {"request": {"project": ""}},
        {"policy": {"projects": ()}},
    ],
    "purpose": [
        {"request": {"purpose": "rescue"}},
        {"policy": {"purposes": ()}},
    ],
    "manifest": [
        {"request": {"manifest_digest": "22" * 32}},
        {"manifests": frozenset()},
    ],
    "tags": [
        {"result": {"tags": {}}},
        {"result": {"tags": {"geo": "US"}}},
        {"result": {"tags": {"GEO": "DE"}}},
        {"policy": {"tags": {"geo": ()}}},
        {"policy": {"tags": {"geo": ("DE",), "rack": ("1",)}}},
    ],
}


@pytest.fixture(scope="module")
def facts() -> Facts:
    tpm = softtpm.SoftTpm(softtpm.Enroller())
    request = softtpm.key_request(
        "00000000-0000-0000-0000-000000000001",
        "https://kms.test",
        project="a",
        manifest_digest="11" * 32,
    )
    host = verify_host(
        tpm.release_evidence(bytes(32), request),
        extra=extra_data(
            LABEL_RELEASE,
            bytes(32),
            release_claims(request.digest(), tpm.bind),
        ),
        enrollers=[tpm.enroller.certificate],
        now=datetime.now(UTC),
    )
    result = AttestationResult(
        issuer="i",
        audience="https://kms.test",
        issued_at=1,
        expires_at=2,
        nonce=bytes(32),
        request_digest=request.digest(),
        host=tpm.host,
        host_id=tpm.host_id,
        level="trusted",
        bind_jwk=tpm.bind.jwk(),
        tags={"geo": "DE"},
    )
    policy = ReleasePolicy(
        authorities=(),
        enrollers=(),
        projects=("a",),
        manifest_keys=(),
        tags={"geo": ("DE", "FR")},
    )
    return Facts(policy, request, host, result, frozenset({"11" * 32}), 1)


def test_every_check_is_tested() -> None:
    assert set(CHECKS) == set(BREAKS) == set(BUILT_IN)


@pytest.mark.parametrize("name", CHECKS)
def test_passes(name: str, facts: Facts) -> None:
    check = policy_checks.load([])[name]
    assert isinstance(check, PolicyCheck)
    assert check.name == name
    check.check(facts)


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name, them in BREAKS.items() for change in them],
)
def test_denies(name: str, change: dict[str, Any], facts: Facts) -> None:
    values = {
        member: replace(getattr(facts, member), **value)
        if isinstance(value, dict)
        else value
        for member, value in change.items()
    }
    check = policy_checks.load([])[name]
    with pytest.raises(Denied) as caught:
        check.check(replace(facts, **values))
    assert caught.value.event == f"kms.release.{name}"


def test_a_check_of_no_such_name_stops_the_start() -> None:
    with pytest.raises(Unavailable) as caught:
        policy_checks.load(["moon-phase"])
    assert caught.value.event == "kms.policy-check.load"


def test_a_check_that_breaks_stops_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mh_kms.policy_checks import tags

    def breaks(self: Any) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(tags.TagsCheck, "__init__", breaks)
    with pytest.raises(Unavailable) as caught:
        policy_checks.load([])
    assert caught.value.event == "kms.policy-check.load"


def test_what_is_no_check_stops_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = stevedore.NamedExtensionManager

    class Wrong(made):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Any:
            for one in super().__iter__():
                one.obj = object()
                yield one

    monkeypatch.setattr(stevedore, "NamedExtensionManager", Wrong)
    with pytest.raises(Unavailable):
        policy_checks.load([])

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
"""Enrolment, and hosts that lie in it."""

from dataclasses import replace
from typing import Any

import pytest

from mh_core.errors import Unavailable, VerificationError
from mh_core.evidence import BOUND
from mh_core.tpm import constants as c
from tests.unit.mh_attest.host import Maker, SoftHost, log_of
from tests.unit.mh_attest.world import World


def refused(
    world: World,
    host: SoftHost,
    event: str,
    status: int = 403,
    /,
    **body: Any,
) -> None:
    """Refused by this event, recorded, nothing stored or certified."""
    before = world.call("GET", "/v1/hosts", None, "reader")
    had = host.ak_certificate
    found = world.enrol(host, status, **body)["error"]
    assert found["event"] == event, found
    record = world.audit()[-1]
    assert record["audit"] == found["audit"]
    assert record["record"]["event"] == event
    assert record["record"]["host"] == body.get("host", host.tpm.host)
    assert world.call("GET", "/v1/hosts", None, "reader") == before
    if event.startswith("attest.enrol."):
        assert host.ak_certificate == had


def test_foreign_manufacturer(world: World) -> None:
    host = world.host()
    host.ek_certificate = Maker("maker").certify(host.ek_key.public_key())
    refused(world, host, "attest.enrol.ek-certificate")


def test_empty_manufacturer_list(world: World) -> None:
    (world.folder / "ek-ca" / "maker.pem").unlink()
    refused(world, world.host(), "attest.enrol.ek-certificate")


def test_certificate_of_another_ek(world: World) -> None:
    host, other = world.host(), world.host("node2")
    host.ek_certificate = other.ek_certificate
    refused(world, host, "attest.enrol.ek-certificate")


def test_not_in_the_inventory(world: World) -> None:
    refused(world, world.host(), "attest.enrol.inventory", ek_sha256="ab" * 32)


def test_another_name(world: World) -> None:
    refused(world, world.host(), "attest.enrol.host", host="node2")


@pytest.mark.parametrize(
    "attributes",
    [
        c.AK_ATTRIBUTES & ~c.RESTRICTED,
        c.AK_ATTRIBUTES & ~c.FIXED_TPM,
        c.AK_ATTRIBUTES | c.DECRYPT,
    ],
)
def test_ak_that_is_none(world: World, attributes: int) -> None:
    host = world.host()
    host.tpm.ak_attributes = attributes
    refused(world, host, "attest.enrol.ak")


def test_ak_of_another_tpm(world: World) -> None:
    """A relay: a good host's EK beside an AK made in software."""
    host = world.host()
    own = host.identity()
    stranger = world.host("node2")
    host.lies["identity"] = replace(own, ak=stranger.tpm.ak)
    refused(world, host, "attest.enrol.credential")


@pytest.mark.parametrize("answer", [b"", bytes(32), b"x" * 31])
def test_credential_not_activated(world: World, answer: bytes) -> None:
    host = world.host()
    host.lies["activate"] = answer
    refused(world, host, "attest.enrol.credential")


def test_quote_that_proves_nothing(world: World) -> None:
    host = world.host()
    other = world.enrolled("node2")
    host.lies["host_quote"] = lambda: other.evidence(
        "mh/quote/host/v1", bytes(32), other.tpm.bind.name
    )
    refused(world, host, "attest.appraise.host")
    host.lies["host_quote"] = lambda: host.evidence(
        "mh/quote/host/v1", bytes(32), host.tpm.bind.name
    )
    refused(world, host, "attest.appraise.evidence")


def test_silent_host(world: World) -> None:
    host = world.host()
    host.lies["activate"] = Unavailable("attest.listener.silent", "no")
    refused(world, host, "attest.listener.silent", 503)
    host.lies["activate"] = VerificationError("attest.listener.size", "big")
    refused(world, host, "attest.enrol.credential")


def test_address_outside_the_networks(world: World) -> None:
    del world.service.listener  # type: ignore[attr-defined]
    for url in ("https://169.254.169.254", "https://10.0.0.1:15446"):
        refused(world, world.host(), "attest.listener.address", listener=url)
    for url in (
        "http://127.0.0.1:1",
        "https://user@127.0.0.1:1",
        "https://127.0.0.1:1/path",
        "https://127.0.0.1:1?x",
        "https://127.0.0.1:99999",
        "ftp://127.0.0.1",
        "127.0.0.1",
    ):
        found = world.enrol(world.host(), 400, listener=url)["error"]
        assert found["event"] == "attest.listener.address"


def test_without_learning_and_without_policy(world: World) -> None:
    host = world.host()
    document = world.enrol(host, learn=False)
    assert document["level"] == "untrusted"
    assert document["event"] == "attest.appraise.no-policy"
    path = "/v1/host-policies/default"
    world.call("GET", path, None, "reader", 404)
    world.call("POST", path + "/learn", {"host": "node1"}, "operator", 200)
    assert world.trust("node1")["node1"]["level"] == "trusted"


def test_second_host_of_a_group_keeps_the_first(world: World) -> None:
    world.enrolled()
    other = world.host("node2", log=log_of(kernel=b"kernel 2"))
    assert world.enrol(other, learn=False)["level"] == "untrusted"
    assert world.enrol(other)["level"] == "trusted"
    policy = world.call(
        "GET", "/v1/host-policies/default", None, "reader", 200
    )
    assert len(policy["pcrs"]["9"]) == 2
    assert len(policy["pcrs"]["4"]) == 1
    found = world.trust("node1", "node2")
    assert {one["level"] for one in found.values()} == {"trusted"}


def test_learning_from_a_host_of_another_group(world: World) -> None:
    world.enrolled()
    answer = world.call(
        "POST",
        "/v1/host-policies/other/learn",
        {"host": "node1"},
        "operator",
        404,
    )
    assert answer["error"]["event"] == "attest.host.unknown"


def test_learning_needs_a_log_that_explains(world: World) -> None:
    host = world.enrolled()
    host.log = log_of(kernel=b"what was not booted")
    answer = world.call(
        "POST",
        "/v1/host-policies/default/learn",
        {"host": "node1"},
        "operator",
        403,
    )["error"]
    assert answer["event"] == "attest.appraise.event-log"
    assert answer["audit"]


def test_a_reserved_name(world: World) -> None:
    host = world.host("trust")
    found = world.enrol(host, 400)["error"]
    assert found["event"] == "attest.enrol.body"


@pytest.mark.parametrize("how", ["enrol", "learn"])
def test_a_value_taken_out_meanwhile_is_not_learnt_back(
    world: World, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = world.enrolled()
    host = world.host("node2", log=log_of(kernel=b"second"))
    if how == "learn":
        world.enrol(host, 201, learn=False)
    path = "/v1/host-policies/default"
    strict = {"pcrs": {str(i): ["ab" * 32] for i in BOUND}}
    digest = world.service.driver.log_mismatches

    def slow(*args: Any) -> Any:
        # after the policy was read, before the learnt one is stored
        world.call("PUT", path, strict, "operator", 200)
        return digest(*args)

    with monkeypatch.context() as patch:
        patch.setattr(world.service.driver, "log_mismatches", slow)
        if how == "enrol":
            world.enrol(host, 201)
        else:
            body = {"host": "node2"}
            world.call("POST", f"{path}/learn", body, "operator", 200)
    found = world.call("GET", path, None, "reader", 200)["pcrs"]
    differ = [i for i in BOUND if old.tpm.pcrs[i] != host.tpm.pcrs[i]]
    assert differ
    for i in differ:
        assert found[str(i)] == ["ab" * 32, host.tpm.pcrs[i].hex()]
    record = world.audit()[-1]["record"]
    assert record["event"] == (
        "attest.enrol.enrolled"
        if how == "enrol"
        else "attest.host-policy.learnt"
    )

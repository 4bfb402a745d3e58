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
"""What an operator says about a host before it is enrolled."""

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mh_client.attest import Attest
from mh_client.hosts import Enrolment, Hosts, digest, ek_fingerprint
from mh_core import akcert
from mh_core.errors import InputError
from tests.unit.mh_client.host import Enroller
from tests.unit.mh_client.https import World

SHA = "ab" * 32


def test_enrolment_body(world: World) -> None:
    world.attest.routes["POST", "/v1/hosts"] = (201, {"host": "node1"})
    enrolment = Enrolment(
        "node1",
        "https://127.0.0.1:15446",
        ":".join(["AB"] * 32),
        tags={"geo": "DE"},
        learn=True,
    )
    assert Hosts(Attest(world.config())).enrol(enrolment)["host"] == "node1"
    assert world.attest.requests[-1].body == {
        "host": "node1",
        "listener": "https://127.0.0.1:15446",
        "listener_sha256": None,
        "ek_sha256": SHA,
        "group": "default",
        "tags": {"geo": "DE"},
        "learn": True,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"listener": "http://127.0.0.1"},
        {"ek_sha256": "ab"},
        {"ek_sha256": "zz" * 32},
        {"listener_sha256": "ab" * 20},
    ],
)
def test_bad_enrolment(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "host": "n",
        "listener": "https://h",
        "ek_sha256": SHA,
    }
    with pytest.raises(InputError):
        Enrolment(**{**good, **change}).to_dict()


def test_digest_takes_what_people_copy() -> None:
    assert digest(" AB:" + "ab" * 31 + "\n") == SHA


def test_ek_certificate_in_both_forms(
    enroller: Enroller, tmp_path: Path
) -> None:
    certificate: x509.Certificate = enroller.certificate
    for form in (Encoding.PEM, Encoding.DER):
        path = tmp_path / "ek"
        path.write_bytes(certificate.public_bytes(form))
        assert ek_fingerprint(str(path)) == akcert.fingerprint(certificate)


@pytest.mark.parametrize("data", [b"", b"-----BEGIN X", b"\x30\x82\xff"])
def test_no_ek_certificate(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ek"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        ek_fingerprint(str(path))
    assert caught.value.event == "client.host.ek-certificate"
    with pytest.raises(InputError):
        ek_fingerprint(str(tmp_path / "none"))


def test_a_policy_is_learnt_for_the_hosts_own_group(world: World) -> None:
    routes = world.attest.routes
    routes["GET", "/v1/hosts/node1"] = (200, {"group": "amd"})
    routes["POST", "/v1/host-policies/amd/learn"] = (200, {"group": "amd"})
    Hosts(Attest(world.config())).learn("node1")
    seen = world.attest.requests[-1]
    assert seen.path == "/v1/host-policies/amd/learn"
    assert seen.body == {"host": "node1"}

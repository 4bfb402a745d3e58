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
"""The lying host with TPMs of its own, judged as a key server does."""

import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from mh_core.errors import VerificationError
from mh_core.evidence import VerifiedHost, release_claims, verify_host
from mh_core.tpm.public import Public
from mh_core.tpm.quote import LABEL_RELEASE, extra_data
from mh_nova.agent.tpm import Tpm
from tests.fixture.softtpm import Enroller, key_request
from tests.fixture.swtpm import Swtpm
from tests.minicloud.foul import node

REQUEST = key_request(str(uuid.uuid4()), "https://127.0.0.1:15443")


@pytest.fixture(scope="module")
def tpms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Tpm]]:
    started, found = [], []
    try:
        for name in ("one", "two"):
            folder = tmp_path_factory.mktemp(name)
            device = Swtpm(folder)
            device.manufacture()
            device.start()
            started.append(device)
            found.append(Tpm(device.tcti, str(folder / "lock")))
        yield found
    finally:
        for device in started:
            device.stop()


def judge(lie: node.Lie, enroller: Enroller) -> VerifiedHost:
    nonce = os.urandom(32)
    evidence = lie.evidence(nonce, REQUEST)
    bind = Public.parse(evidence.bind_public)
    claims = release_claims(REQUEST.digest(), bind)
    return verify_host(
        evidence,
        extra=extra_data(LABEL_RELEASE, nonce, claims),
        enrollers=[enroller.certificate],
        now=datetime.now(UTC),
    )


def test_lies(tpms: list[Tpm]) -> None:
    one, two = tpms
    enroller = Enroller()
    certificate = enroller.issue(one.ak(), str(uuid.uuid4()), "node1")
    host = judge(node.honest(one, certificate), enroller)
    assert host.identity.host == "node1"
    for lie, event in (
        (node.software_bind(one, certificate), "core.tpm.certify.name"),
        (node.forged_bind(one, certificate), "core.tpm.certify.signature"),
        (
            node.uncertified_bind(one, two, certificate),
            "core.tpm.certify.signature",
        ),
        (node.software_host("node1"), "core.akcert.issuer"),
    ):
        with pytest.raises(VerificationError) as caught:
            judge(lie, enroller)
        assert caught.value.event == event, lie.name

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
"""Servers for the client's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mh_core import akcert, jose
from tests.fixture.tls import Authority
from tests.unit.mh_client.host import Enroller
from tests.unit.mh_client.https import Server, World


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def enroller() -> Enroller:
    return Enroller()


@pytest.fixture
def world(
    tls: Authority, enroller: Enroller, tmp_path: Path
) -> Iterator[World]:
    """A key server and an attestation server that say who they are."""
    leaf = tls.issue("server")
    kms, attest = Server(leaf), Server(leaf)
    folder = tmp_path / "home"
    folder.mkdir()
    world = World(
        tls,
        kms,
        attest,
        folder,
        jose.generate_key(),
        jose.generate_key(),
        enroller_sha256=akcert.fingerprint(enroller.certificate),
    )
    kms.routes["GET", "/v1"] = (
        200,
        {
            "origin": kms.url,
            "transport_jwk": jose.public(world.transport),
            "version": "1",
        },
    )
    attest.routes["GET", "/v1"] = (
        200,
        {
            "issuer": world.issuer,
            "jwk": jose.public(world.result_key),
            "enroller_certificate": enroller.pem,
            "version": "1",
        },
    )
    yield world
    kms.close()
    attest.close()

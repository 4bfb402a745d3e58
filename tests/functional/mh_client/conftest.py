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
"""A tenant with a key server, an authority and a cloud."""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from keystoneauth1.adapter import Adapter
from keystoneauth1.noauth import NoAuth
from keystoneauth1.session import Session

from mh_client.client import TrustedClient
from tests.fixture.tls import Authority
from tests.functional.mh_client import services
from tests.functional.mh_client.services import Glance, Service

PROJECT = "0123456789abcdef0123456789abcdef"
_CLIENT = """\
[kms]
url = "{kms}"
ca_file = "{ca}"
transport_thumbprint = "{transport}"
token_file = "kms.token"
[attest]
url = "{attest}"
ca_file = "{ca}"
token_file = "attest.token"
issuer = "{attest}"
jwk_thumbprint = "{jwk}"
enroller_sha256 = "{enroller}"
"""


@dataclass
class Tenant:
    """
    :param stream: what a person would see on standard error.
    """

    client: TrustedClient
    home: Path
    glance: Glance
    stream: io.StringIO


@pytest.fixture(scope="session")
def backend(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Authority, Service, Service]]:
    base = tmp_path_factory.mktemp("services")
    tls = Authority(base / "tls")
    leaf = tls.issue("server")
    both = (
        services.kms(tls, leaf, base / "kms"),
        services.attest(tls, leaf, base / "attest"),
    )
    try:
        for service in both:
            service.manage("db", "sync")
            service.start()
        yield tls, *both
    finally:
        for service in both:
            service.stop()


@pytest.fixture(scope="session")
def template(
    backend: tuple[Authority, Service, Service],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A tenant's folder as it is before the first command."""
    tls, kms, attest = backend
    home = tmp_path_factory.mktemp("template")
    kms.manage(
        *("token", "create", "--name", "tenant", "--project", PROJECT),
        *("--roles", "owner", "--out", str(home / "kms.token")),
    )
    attest.manage(
        *("token", "create", "--name", "tenant"),
        *("--roles", "reader", "--out", str(home / "attest.token")),
    )
    transport = json.loads(kms.manage("transport-key", "show"))
    identity = json.loads(attest.manage("identity", "show"))
    (home / "client.toml").write_text(
        _CLIENT.format(
            kms=kms.url,
            attest=attest.url,
            ca=tls.ca_file,
            transport=transport["thumbprint"],
            jwk=identity["thumbprint"],
            enroller=identity["enroller_sha256"],
        )
    )
    return home


@pytest.fixture
def tenant(template: Path, tmp_path: Path) -> Iterator[Tenant]:
    home = tmp_path / "home"
    shutil.copytree(template, home)
    glance = Glance()
    adapter = Adapter(Session(NoAuth()), endpoint_override=glance.url)
    stream = io.StringIO()
    client = TrustedClient(
        str(home / "client.toml"), lambda: adapter, lambda: adapter, stream
    )
    yield Tenant(client, home, glance, stream)
    glance.close()

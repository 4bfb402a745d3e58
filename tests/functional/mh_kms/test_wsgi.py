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

"""``mh_kms.wsgi.api:application``, as WSGI servers import it."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.functional.mh_kms.server import KmsServer
from tests.functional.mh_kms.tls import Ca

CALL = """
from falcon.testing import TestClient
from mh_kms.wsgi.api import application
answer = TestClient(application).simulate_get("/healthcheck")
print(answer.status_code, answer.json)
"""


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> KmsServer:
    folder = tmp_path_factory.mktemp("kms")
    one = KmsServer(folder, Ca(folder), "https://127.0.0.1:1")
    one.manage("db", "sync")
    return one


def run(
    script: str, path: pathlib.Path | None
) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("OS_MH")}
    if path is not None:
        env["OS_MH_KMS_CONFIG_FILE"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", script],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_serves(kms: KmsServer) -> None:
    done = run(CALL, kms.config)
    assert done.stdout == "200 {'status': 'ok'}\n", done.stderr
    assert "GET /healthcheck 200" in done.stderr


def test_import_needs_no_configuration() -> None:
    done = run("import mh_kms.wsgi.api", None)
    assert done.returncode == 0, done.stderr


def test_a_call_does() -> None:
    done = run(CALL, None)
    assert "OS_MH_KMS_CONFIG_FILE is not set" in done.stderr


def test_a_bad_configuration_fails_the_import(
    kms: KmsServer, tmp_path: pathlib.Path
) -> None:
    bad = tmp_path / "bad.conf"
    bad.write_text(
        kms.config.read_text().replace("kms.sqlite", "other.sqlite")
    )
    done = run("import mh_kms.wsgi.api", bad)
    assert done.returncode != 0
    assert "kms.db.version" in done.stderr


def test_log_is_redacted(kms: KmsServer) -> None:
    script = (
        "import logging, mh_kms.wsgi.api\n"
        "logging.getLogger('x').warning('ticket=%s', 'A' * 43)\n"
        "logging.getLogger('x').warning('Bearer %s', 'mhk_abc')\n"
    )
    done = run(script, kms.config)
    assert "A" * 43 not in done.stderr
    assert "mhk_abc" not in done.stderr
    assert done.stderr.count("***") == 2

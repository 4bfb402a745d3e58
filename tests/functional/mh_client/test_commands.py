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
"""``openstack trusted …`` as people type it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mh_core.manifest import Manifest
from tests.functional.mh_client.conftest import PROJECT, Tenant
from tests.functional.mh_reader import disks

MARKER = b"marker:77aa0f9c2d1e7a6b"


def openstack(
    tenant: Tenant, *words: str, config: str = "client.toml"
) -> subprocess.CompletedProcess[str]:
    """With a cloud that asks for no password."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tenant.home),
        "LANG": "C.UTF-8",
        "OS_AUTH_TYPE": "none",
        "OS_ENDPOINT": tenant.glance.url,
        "OS_TRUSTED_CONFIG": str(tenant.home / config),
    }
    return subprocess.run(
        [str(Path(sys.executable).parent / "openstack"), *words],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def test_help_reads_well(tenant: Tenant) -> None:
    for words in (("trusted", "--help"), ("trusted",), ("help", "trusted")):
        done = openstack(tenant, *words)
        assert done.returncode == 0, done.stderr
        for line in (
            "openstack trusted key create NAME",
            "openstack trusted image create NAME --file FILE --key KEY",
            "openstack trusted server create NAME",
            "openstack trusted host enrol HOST",
        ):
            assert line in done.stdout
        assert max(map(len, done.stdout.splitlines())) < 80


def test_a_day_of_a_tenant(tenant: Tenant) -> None:
    done = openstack(
        *(tenant, "trusted", "key", "create", "day", "--project", PROJECT),
        *("--tag", "geo=DE", "-f", "json"),
    )
    assert done.returncode == 0, done.stderr
    key = json.loads(done.stdout)
    assert key["levels"] == ["trusted"]
    assert key["tags"] == {"geo": ["DE"]}
    assert "signing key" in done.stderr
    disk = tenant.home / "disk.raw"
    disk.write_bytes(MARKER * 9 + bytes(1 << 20))
    done = openstack(
        *(tenant, "trusted", "image", "create", "web", "--file", str(disk)),
        *("--key", "day", "-f", "json", "--debug"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    image = json.loads(done.stdout)
    assert image["id"] in tenant.glance.images
    assert MARKER not in tenant.glance.data[image["id"]]
    for word in ("encrypt", "hash", "upload"):
        assert f"{word:<8} [" in done.stderr
    # even with --debug nothing that opens anything
    for name in ("kms.token", "attest.token"):
        token = (tenant.home / name).read_text().strip()
        assert token not in done.stderr
    own = json.loads((tenant.home / "signing.jwk").read_text())
    assert own["d"] not in done.stderr
    done = openstack(tenant, "trusted", "image", "show", "web", "-f", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["manifest"].startswith("verified")
    done = openstack(
        *(tenant, "trusted", "key", "audit", "list", "day", "-f", "json")
    )
    assert [r["Event"] for r in json.loads(done.stdout)] == [
        "kms.key.created",
        "kms.deliver.delivered",
        "kms.manifest.added",
    ]
    # not without --yes
    done = openstack(tenant, "trusted", "key", "delete", "day")
    assert done.returncode == 1
    assert "--yes" in done.stderr
    done = openstack(tenant, "trusted", "key", "delete", "day", "--yes")
    assert done.returncode == 0, done.stderr


def test_an_image_of_which_files_are_to_be_measured(tenant: Tenant) -> None:
    folder = tenant.home / "files"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    disk = disks.ext(tenant.home / "measured.raw", folder, mib=8)
    done = openstack(
        *(tenant, "trusted", "key", "create", "measured"),
        *("--project", PROJECT, "-f", "json"),
    )
    assert done.returncode == 0, done.stderr
    words = ("trusted", "image", "create", "measured", "--file", str(disk))
    words += ("--key", "measured", "-f", "json")
    for asked, event in (
        ("modules=/etc/shadow", "reader.run.disk"),
        ("modules=", "client.measure.form"),
        ("everything", "client.measure.form"),
    ):
        done = openstack(tenant, *words, "--measure", asked)
        assert done.returncode == 1
        assert event in done.stderr
    done = openstack(tenant, *words, "--measure", "modules=/etc/passwd")
    assert done.returncode == 0, done.stderr[-2000:]
    image = json.loads(done.stdout)
    assert image["measured"] == "modules"
    assert image["modules"] == ["disk:/etc/passwd"]
    token = tenant.glance.images[image["id"]]["mh_manifest"]
    key = json.loads((tenant.home / "signing.jwk").read_text())
    assert Manifest.verify(token, [key]).modules == {
        "disk:/etc/passwd": disks.sha256(folder / "etc/passwd")
    }


@pytest.mark.parametrize(
    ("words", "event"),
    [
        (("key", "show", "nothing"), "client.kms.find"),
        (("host", "show", "node1"), "attest.host.unknown"),
        (("image", "show", "none"), "client.signing.key"),
    ],
)
def test_errors_are_a_sentence_and_an_event(
    tenant: Tenant, words: tuple[str, ...], event: str
) -> None:
    done = openstack(tenant, "trusted", *words)
    assert done.returncode == 1
    assert f"[{event}]" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_no_configuration(tenant: Tenant) -> None:
    done = openstack(tenant, "trusted", "key", "list", config="none.toml")
    assert done.returncode == 1
    assert "[client.config.file]" in done.stderr
    assert "--os-trusted-config" in done.stderr

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
"""A tenant's work against the real key server and attestation server."""

import secrets
import subprocess
from pathlib import Path

import pytest

from mh_client.audit import entry
from mh_client.images import NewImage
from mh_client.release_policy import Changes, Rules
from mh_core import manifest as manifests
from mh_core.errors import InputError, MHError, NotFound, VerificationError
from mh_core.image import luks1
from mh_core.launch_policy import LaunchPolicy
from tests.functional.mh_client.conftest import PROJECT, Tenant

MARKER = b"marker:0f9c2d1e7a6b4c58"


@pytest.fixture
def disk(tenant: Tenant) -> Path:
    path = tenant.home / "disk.raw"
    path.write_bytes(MARKER * 64 + bytes(1 << 20))
    return path


def create(tenant: Tenant, name: str = "web", **more: object) -> str:
    rules = Rules(projects=(PROJECT,), **more)  # type: ignore[arg-type]
    return tenant.client.keys.create(name, rules).id


def events(tenant: Tenant, key: str) -> list[str]:
    return [entry(r).event for r in tenant.client.keys.audit(key)]


def test_keys(tenant: Tenant) -> None:
    name = "k" + secrets.token_hex(4)
    key_id = create(tenant, name, tags={"geo": ("DE",)})
    keys = tenant.client.keys
    found = keys.find(name)
    assert found.id == key_id
    assert found.policy["projects"] == [PROJECT]
    assert key_id in [key.id for key in keys.all()]
    changed = keys.change(name, Changes(level="boot-only", lease=60))
    assert changed.policy["levels"] == ["trusted", "boot-only"]
    assert keys.find(key_id).policy == changed.policy
    assert events(tenant, name) == ["kms.key.created", "kms.key.policy"]
    keys.delete(name)
    with pytest.raises(NotFound):
        keys.find(name)


def test_image(tenant: Tenant, disk: Path) -> None:
    key_id = create(tenant, "i" + secrets.token_hex(4))
    policy = LaunchPolicy(user_data=("ab" * 32,))
    made = tenant.client.images.create(
        NewImage("web", str(disk), key_id, launch_policy=policy)
    )
    document = tenant.glance.images[made.id]
    assert document["disk_format"] == "qcow2"
    assert document["visibility"] == "private"
    assert document["os_encrypt_key_id"] == key_id
    assert document["trait:CUSTOM_MH_TRUSTED_LAUNCH"] == "required"
    assert MARKER not in tenant.glance.data[made.id]
    key = tenant.client.keys.find(key_id)
    assert key.manifests == (manifests.digest(document["mh_manifest"]),)
    assert document["mh_key_url"] == key.url
    shown = tenant.client.images.show("web")
    assert shown.digest == made.digest
    assert shown.manifest.launch_policy == policy
    assert "kms.deliver.delivered" in events(tenant, key_id)
    # only the plain image, the client's files, and no ciphertext
    assert {p.name for p in tenant.home.iterdir()} == {
        "attest.token", "client.toml", "disk.raw", "kms.token", "signing.jwk",
    }  # fmt: skip
    for word in ("encrypt", "hash", "upload"):
        assert word in tenant.stream.getvalue()


def test_the_image_opens_with_the_delivered_key(
    tenant: Tenant, disk: Path
) -> None:
    key_id = create(tenant, "o" + secrets.token_hex(4))
    made = tenant.client.images.create(NewImage("web", str(disk), key_id))
    dek = tenant.client.kms.deliver(key_id)
    image = tenant.home / "image"
    image.write_bytes(tenant.glance.data[made.id])
    word = tenant.home / "word"
    word.write_bytes(luks1.passphrase(dek.reveal()))
    done = subprocess.run(
        [
            *("qemu-img", "compare"),
            *("--object", f"secret,id=s,file={word}", "--image-opts"),
            f"driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,"
            f"file.filename={image}",
            f"driver=raw,file.filename={disk}",
        ],
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize("fault", ["data", "bytes", "property"])
def test_nothing_stays_where_the_upload_fails(
    tenant: Tenant, disk: Path, fault: str
) -> None:
    key_id = create(tenant, "f" + secrets.token_hex(4))
    tenant.glance.fail = fault
    with pytest.raises(MHError) as caught:
        tenant.client.images.create(NewImage("web", str(disk), key_id))
    assert caught.value.event.startswith("client.upload.")
    assert not tenant.glance.images
    assert tenant.client.keys.find(key_id).manifests == ()
    tenant.glance.fail = ""
    tenant.client.images.create(NewImage("web", str(disk), key_id))


def test_tampering_shows(tenant: Tenant, disk: Path) -> None:
    key_id = create(tenant, "t" + secrets.token_hex(4))
    images = tenant.client.images
    first = images.create(NewImage("one", str(disk), key_id))
    second = images.create(NewImage("two", str(disk), key_id))
    document = tenant.glance.images[first.id]
    good = dict(document)
    other = tenant.glance.images[second.id]
    changes = [
        ({"mh_manifest": other["mh_manifest"]}, "client.image.manifest"),
        (
            {"mh_key_url": "https://x/v1/keys/" + key_id},
            "client.image.key-url",
        ),
        ({"os_hash_value": "00" * 64}, "client.image.digest"),
        ({"size": 5}, "client.image.digest"),
        ({"os_decrypt_size": "512"}, "client.image.manifest"),
        ({"mh_version": "2"}, "client.image.properties"),
    ]
    for change, event in changes:
        document |= change
        with pytest.raises(MHError) as caught:
            images.show(first.id)
        assert caught.value.event == event
        document |= good
    assert images.show(first.id).id == first.id


def test_a_manifest_of_another_signer(tenant: Tenant, disk: Path) -> None:
    key_id = create(tenant, "s" + secrets.token_hex(4))
    made = tenant.client.images.create(NewImage("web", str(disk), key_id))
    (tenant.home / "signing.jwk").unlink()
    create(tenant, "n" + secrets.token_hex(4))
    with pytest.raises(VerificationError) as caught:
        tenant.client.images.show(made.id)
    assert caught.value.event == "core.jose.signature"
    with pytest.raises(VerificationError) as caught:
        tenant.client.images.create(NewImage("web", str(disk), key_id))
    assert caught.value.event == "client.image.signing-key"


def test_the_bare_ak_form_must_be_allowed(tenant: Tenant, disk: Path) -> None:
    key_id = create(tenant, "c" + secrets.token_hex(4))
    new = NewImage("web", str(disk), key_id, compat=True)
    with pytest.raises(InputError) as caught:
        tenant.client.images.create(new)
    assert caught.value.event == "client.image.compat"
    tenant.client.keys.change(key_id, Changes(compat=True))
    made = tenant.client.images.create(new)
    key = tenant.client.keys.find(key_id)
    assert tenant.glance.images[made.id]["mh_key_url"] == key.compat_url


def test_tickets_are_for_registered_manifests(
    tenant: Tenant, disk: Path
) -> None:
    key_id = create(tenant, "l" + secrets.token_hex(4))
    made = tenant.client.images.create(NewImage("web", str(disk), key_id))
    ticket = tenant.client.kms.ticket(key_id, [made.digest])
    assert ticket.secret.reveal()
    with pytest.raises(NotFound) as caught:
        tenant.client.kms.ticket(key_id, ["00" * 32])
    assert caught.value.event == "kms.manifest.unknown"


def test_the_attestation_server(tenant: Tenant) -> None:
    attest = tenant.client.attest
    assert attest.authority().issuer == attest.authority().url
    assert attest.hosts() == []
    assert attest.reports("5a8c1f7e-0c57-4a1d-8f0e-3d2f1b6a9c01") == []
    with pytest.raises(NotFound):
        tenant.client.hosts.show("node1")
    with pytest.raises(NotFound):
        tenant.client.hosts.policy("default")
    # a reader is no operator
    with pytest.raises(MHError) as caught:
        tenant.client.hosts.delete("node1")
    assert caught.value.event.startswith("attest.")

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
"""Raw LUKS1 and OVA by the client, against the real key server."""

import os
import secrets
import uuid
from pathlib import Path

import pytest

from mh_client.images import NewImage
from mh_core.errors import InputError
from mh_core.image import afsplit, luks1, ova
from tests.functional.mh_client.conftest import Tenant
from tests.functional.mh_client.test_tenant import MARKER, create, disk

__all__ = ["disk"]


def only_the_tenants_files(tenant: Tenant, *more: str) -> bool:
    return {path.name for path in tenant.home.iterdir()} == {
        "attest.token", "client.toml", "disk.raw", "kms.token", "signing.jwk",
        *more,
    }  # fmt: skip


def test_raw_luks(tenant: Tenant, disk: Path) -> None:
    key_id = create(tenant, "l" + secrets.token_hex(4))
    made = tenant.client.images.create(
        NewImage("web", str(disk), key_id, kind="luks")
    )
    document = tenant.glance.images[made.id]
    assert document["disk_format"] == "raw"
    assert document["container_format"] == "bare"
    data = tenant.glance.data[made.id]
    assert data.startswith(luks1.MAGIC)
    assert MARKER not in data
    shown = tenant.client.images.show("web")
    assert shown.manifest.format == "luks"
    assert only_the_tenants_files(tenant)


def test_ova(tenant: Tenant, disk: Path) -> None:
    key_id = create(tenant, "v" + secrets.token_hex(4))
    made = tenant.client.images.create(
        NewImage("web", str(disk), key_id, ova=True)
    )
    document = tenant.glance.images[made.id]
    assert document["disk_format"] == "qcow2"
    assert document["container_format"] == "ova"
    data = tenant.glance.data[made.id]
    assert MARKER not in data
    assert document["mh_key_url"].encode() in data[: 8 * ova.BLOCK]
    shown = tenant.client.images.show("web")
    assert shown.manifest.size == len(data)
    inside = shown.manifest.container
    assert inside is not None
    assert data[inside.offset : inside.offset + 4] == b"QFI\xfb"
    assert only_the_tenants_files(tenant)


def test_luks_that_is_there(tenant: Tenant, disk: Path) -> None:
    """Encrypted elsewhere, under the key's own passphrase."""
    key_id = create(tenant, "t" + secrets.token_hex(4))
    key = tenant.client.kms.deliver(key_id).reveal()
    area, master = luks1.build(luks1.passphrase(key), uuid.uuid4(), os.urandom)
    body = MARKER.ljust(4096, b"\0")
    path = tenant.home / "there.luks"
    path.write_bytes(area + afsplit.encrypt("xts-plain64", master, body))
    images = tenant.client.images
    new = NewImage("web", str(path), key_id, form="luks", kind="luks")
    made = images.create(new)
    assert tenant.glance.data[made.id] == path.read_bytes()
    assert made.manifest.virtual_size == 4096
    assert only_the_tenants_files(tenant, "there.luks")
    other = create(tenant, "u" + secrets.token_hex(4))
    with pytest.raises(InputError) as caught:
        images.create(
            NewImage("web", str(path), other, form="luks", kind="luks")
        )
    assert caught.value.event == "client.encrypt.luks"


@pytest.mark.parametrize(
    "more",
    [
        {"ova": True, "kind": "luks"},
        {"form": "luks", "ova": True},
        {"form": "luks"},
    ],
)
def test_forms_that_do_not_go_together(
    tenant: Tenant, disk: Path, more: dict[str, object]
) -> None:
    key_id = create(tenant, "x" + secrets.token_hex(4))
    before = len(tenant.glance.images)
    with pytest.raises(InputError) as caught:
        tenant.client.images.create(
            NewImage("web", str(disk), key_id, **more)  # type: ignore[arg-type]
        )
    assert caught.value.event == "client.image.kind"
    assert len(tenant.glance.images) == before

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
"""A guest with a virtual TPM, in a real libvirtd with a real swtpm.

The key server is the tenant's of these tests; the state file is looked at
where libvirt keeps it, in libvirtd's own mount namespace.
"""

import dataclasses
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from mh_core import vtpm
from mh_core.errors import MHError
from mh_core.request import Disk
from mh_core.secret import Secret
from mh_nova.agent.overlay import secret_uuid
from mh_nova.agent.secrets import PREFIX, Libvirt, Secrets
from tests.functional.mh_nova.agent import test_secrets
from tests.functional.mh_nova.agent.test_secrets import names
from tests.functional.mh_nova.agent.world import World

pytestmark = test_secrets.pytestmark
uri = test_secrets.uri
connection = test_secrets.connection
STATE = "var/lib/libvirt/swtpm/{}/tpm2/tpm2-00.permall"
#: A flag of swtpm's file header (BLOB_FLAG_ENCRYPTED).
ENCRYPTED = 0x0001


def xml(world: World, secret: str = "") -> str:
    """With the TPM that nova adds; without a network, as there is none."""
    tpm = (
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'>"
        f"<encryption secret='{secret or vtpm.secret_uuid(world.instance)}'/>"
        "</backend></tpm>"
    )
    text = re.sub(
        r"<interface.*</interface>", "", world.xml(), flags=re.DOTALL
    )
    return text.replace("</devices>", tpm + "</devices>")


def refused(call: Any, *args: Any) -> str:
    with pytest.raises(MHError) as caught:
        call(*args)
    return caught.value.event


# what is asked for, without libvirt


def test_its_key_is_one_more_of_the_tenants(world: World) -> None:
    world.make(vtpm=True)
    world.start(xml=xml(world))
    (request,) = world.kms.requests
    own = Disk("vtpm", world.instance)
    assert [one.name for one in request.disks] == ["disk", "vtpm"]
    assert request.disks[1] == own
    name = vtpm.secret_uuid(world.instance)
    keys = world.secrets.defined[world.instance]
    assert world.secrets.tpms[world.instance] == name
    assert set(keys) == {
        name,
        secret_uuid(world.instance, "disk", "overlay"),
        secret_uuid(world.instance, "disk", "base"),
    }
    assert len(set(keys.values())) == 3
    first = keys[name]
    world.launcher.started(world.instance, True)
    assert not world.secrets.defined
    # the same at each start, whatever agent asks
    world.halt()
    world.boot()
    world.start("start", xml(world))
    assert world.secrets.defined[world.instance][name] == first
    assert len(world.kms.requests) == 2


def test_one_without_asks_for_none(world: World) -> None:
    world.make()
    world.start()
    (request,) = world.kms.requests
    assert [one.name for one in request.disks] == ["disk"]
    assert world.secrets.tpms[world.instance] == ""


def test_a_record_of_an_earlier_version(world: World) -> None:
    """From before there were any: it has none."""
    world.make()
    world.launcher.started(world.instance, False)
    (path,) = (world.folder / "state/instances").iterdir()
    record = json.loads(path.read_bytes())
    assert record.pop("vtpm") is False
    path.write_text(json.dumps(record))
    world.halt()
    world.boot()
    world.start("start")
    assert len(world.secrets.defined[world.instance]) == 2


def test_none_that_was_not_asked_for(world: World) -> None:
    """The domain has one, the record has none: or the other way round."""
    world.make()
    assert refused(world.start, "launch", xml(world)) == "agent.admit.tpm"
    assert not world.secrets.defined
    world.make(vtpm=True)
    assert refused(world.start, "launch") == "agent.admit.tpm"
    other = vtpm.secret_uuid(world.new_instance())
    world.make(vtpm=True)
    assert (
        refused(world.start, "launch", xml(world, other)) == "agent.admit.tpm"
    )
    assert not world.secrets.defined


def test_a_snapshot_does_not_ask_for_it(world: World) -> None:
    """Its state is not part of the image, so its key is not needed."""
    world.make(vtpm=True)
    world.launcher.started(world.instance, False)
    with pytest.raises(MHError):
        world.launcher.snapshot_check(world.instance)
    assert world.kms.requests[-1].purpose == "snapshot"
    assert [one.name for one in world.kms.requests[-1].disks] == ["disk"]


def test_a_denied_key_starts_nothing(world: World) -> None:
    world.make(vtpm=True)
    world.launcher.started(world.instance, False)
    world.kms.reply = lambda path: world.kms.error(
        403, "kms.release.attestation"
    )
    assert refused(world.start, "start", xml(world)).startswith("agent.kms")
    assert not world.secrets.defined


# with libvirt


class Host:
    """libvirt's side of one guest."""

    def __init__(self, world: World, connection: Libvirt) -> None:
        self.world = world
        self.connection = connection
        self.secrets = Secrets(connection, 60)
        world.launcher._p.__dict__["secrets"] = self.secrets
        self.domain = connection.connection().defineXML(xml(world))

    @property
    def state(self) -> Path:
        """The TPM's state, seen through the namespace of its libvirtd."""
        pid = _daemon(self.connection)
        return Path(f"/proc/{pid}/root") / STATE.format(self.world.instance)

    def start(self, purpose: str) -> None:
        self.world.start(purpose, xml(self.world))
        self.domain.create()
        self.world.launcher.started(self.world.instance, True)

    def end(self) -> None:
        if self.domain.isActive():
            self.domain.destroy()
        self.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


def _daemon(connection: Libvirt) -> int:
    """Pid of the libvirtd at the other end."""
    path = str(connection._uri).partition("socket=")[2]
    out = subprocess.run(
        ["ss", "-xlpH", "src", path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return int(re.findall(r"pid=(\d+)", out)[0])


@pytest.fixture
def host(world: World, connection: Libvirt) -> Iterator[Host]:
    world.make(vtpm=True)
    host = Host(world, connection)
    yield host
    host.end()
    host.secrets.sweep()


def flags(data: bytes) -> int:
    """Of a state file of swtpm (swtpm_nvstore.c, struct
    nvram_linear_hdr): version, minimum version, header size, flags."""
    assert data[:4] == b"\x02\x01\x00\x0a"
    return int.from_bytes(data[4:6], "big")


def opens(state: Path, key: bytes | None, tmp_path: Path) -> bool:
    """Does swtpm start from a copy of the state, with this passphrase?"""
    folder = tmp_path / "copy"
    folder.mkdir(exist_ok=True)
    (folder / state.name).write_bytes(state.read_bytes())
    secret = folder / "key"
    secret.write_bytes((key or b"").hex().encode())
    words = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}"]
    if key is not None:
        words += ["--key", f"pwdfile={secret},mode=aes-256-cbc"]
    words += ["--flags", "startup-clear", "--ctrl"]
    words += [f"type=unixio,path={folder / 'ctrl'}"]
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        return True
    finally:
        process.kill()
        process.wait()
    return False


def test_the_state_is_encrypted_and_kept(
    host: Host, connection: Libvirt, tmp_path: Path
) -> None:
    world = host.world
    with pytest.raises(libvirt.libvirtError, match="[Ss]ecret"):
        host.domain.create()
    assert not host.state.exists()
    host.start("launch")
    assert host.domain.isActive()
    # gone from libvirt, and the guest runs on
    assert not names(connection)
    first = host.state.read_bytes()
    assert flags(first) & ENCRYPTED
    key = _key(world)
    assert opens(host.state, key, tmp_path)
    assert not opens(host.state, None, tmp_path)
    assert not opens(host.state, bytes(32), tmp_path)
    host.domain.destroy()
    # without its key it does not start, and is as it was
    with pytest.raises(libvirt.libvirtError, match="[Ss]ecret"):
        host.domain.create()
    host.start("start")
    assert host.domain.isActive()
    assert not names(connection)
    assert opens(host.state, key, tmp_path)


def test_with_another_key_it_does_not_start(
    host: Host, connection: Libvirt, tmp_path: Path
) -> None:
    world = host.world
    host.start("launch")
    host.domain.destroy()
    before = host.state.read_bytes()
    world.start("start", xml(world))
    right = connection.connection().secretLookupByUUIDString(
        vtpm.secret_uuid(world.instance)
    )
    right.setValue(b"0" * 64, 0)
    with pytest.raises(libvirt.libvirtError):
        host.domain.create()
    world.launcher.started(world.instance, False)
    assert not names(connection)
    assert host.state.read_bytes() == before
    assert opens(host.state, _key(world), tmp_path)


def test_a_state_in_the_clear_is_not_taken(
    host: Host, connection: Libvirt, tmp_path: Path
) -> None:
    """Somebody puts a state there that he made himself."""
    world = host.world
    host.start("launch")
    host.domain.destroy()
    made = tmp_path / "made"
    made.mkdir()
    subprocess.run(
        ["swtpm_setup", "--tpm2", "--tpm-state", str(made), "--createek"],
        check=True,
        capture_output=True,
    )
    plain = (made / host.state.name).read_bytes()
    # control: this is what a state in the clear looks like
    assert not flags(plain) & ENCRYPTED
    assert opens(made / host.state.name, None, tmp_path)
    host.state.write_bytes(plain)
    world.start("start", xml(world))
    with pytest.raises(libvirt.libvirtError):
        host.domain.create()
    world.launcher.started(world.instance, False)
    assert not names(connection)


def test_undefined_the_state_is_gone(host: Host) -> None:
    host.start("launch")
    host.domain.destroy()
    assert host.state.exists()
    folder = host.state.parent.parent
    host.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM)
    assert host.state.exists()
    host.domain = host.connection.connection().defineXML(xml(host.world))
    host.domain.undefineFlags(0)
    assert not folder.exists()
    host.domain = host.connection.connection().defineXML(xml(host.world))


def test_the_secret_is_private_and_for_tpms_only(connection: Libvirt) -> None:
    secrets = Secrets(connection, 60)
    one, two = vtpm.secret_uuid("a"), vtpm.secret_uuid("b")
    secrets.define(
        "i",
        {one: Secret(bytes(range(32))), two: Secret(bytes(range(32)))},
        one,
    )
    found = connection.connection().secretLookupByUUIDString(one)
    assert found.usageType() == libvirt.VIR_SECRET_USAGE_TYPE_VTPM
    assert found.usageID() == PREFIX + one
    assert "ephemeral='yes' private='yes'" in found.XMLDesc(0)
    other = connection.connection().secretLookupByUUIDString(two)
    assert other.usageType() == libvirt.VIR_SECRET_USAGE_TYPE_VOLUME
    # as an agent that crashed leaves them
    Secrets(connection, 60).sweep()
    assert not names(connection)


def _key(world: World) -> bytes:
    """As the tenant's key server derives it."""
    payload = world.kms.payload(
        dataclasses.replace(
            world.kms.requests[-1],
            disks=(vtpm.wanted(world.instance),),
        )
    )
    return payload.overlay_keys["vtpm"].reveal()

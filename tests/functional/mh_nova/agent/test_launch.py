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
"""A launch as nova drives it, with real files, TLS and qemu tools."""

import os
import subprocess
import time
import uuid
from dataclasses import replace
from typing import Any

import pytest

from mh_core import jose
from mh_core.audit import verify_chain
from mh_core.errors import Conflict, Denied, MHError, NotFound, Unavailable
from mh_core.image import luks1
from mh_core.secret import Secret
from mh_nova.agent.hashing import GrowingHash
from mh_nova.agent.journal import read
from mh_nova.agent.measurers.base import HashedFile
from mh_nova.agent.overlay import secret_uuid
from mh_nova.agent.store import DiskRecord
from tests.functional.mh_nova.agent.world import MIB, World


def refused(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(MHError) as caught:
        call(*args, **kwargs)
    return caught.value.event


def memfd(data: bytes) -> int:
    fd = os.memfd_create("key")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def qemu_io(world: World, overlay: bytes, base: bytes, *commands: str) -> str:
    """Open the chain as libvirt will; keys by descriptor."""
    fds = [memfd(luks1.passphrase(overlay)), memfd(luks1.passphrase(base))]
    options = (
        "driver=qcow2,encrypt.format=luks,encrypt.key-secret=s0,"
        f"file.driver=file,file.filename={world.disk},"
        "backing.driver=qcow2,backing.encrypt.format=luks,"
        "backing.encrypt.key-secret=s1,backing.file.driver=file,"
        f"backing.file.filename={world.base}"
    )
    done = subprocess.run(
        [
            "qemu-io",
            "--image-opts",
            options,
            *(
                part
                for i, fd in enumerate(fds)
                for part in (
                    "--object",
                    f"secret,id=s{i},file=/dev/fd/{fd}",
                )
            ),
            *(part for command in commands for part in ("-c", command)),
        ],
        pass_fds=fds,
        capture_output=True,
        text=True,
        check=False,
    )
    for fd in fds:
        os.close(fd)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_the_whole_way(world: World) -> None:
    disks = world.make()
    assert disks == [
        {
            "name": "disk",
            "overlay_secret": secret_uuid(world.instance, "disk", "overlay"),
            "base_secret": secret_uuid(world.instance, "disk", "base"),
            "base": True,
            "base_format": "qcow2",
        }
    ]
    assert world.base.read_bytes() == world.tenant.data
    assert not world.part.exists()
    assert world.base.stat().st_mode & 0o777 == 0o444
    assert world.disk.stat().st_mode & 0o777 == 0o600
    event, detail = world.start()
    assert event == "agent.start.granted"
    assert "agent#" in detail
    assert "kms#1" in detail
    keys = world.secrets.defined[world.instance]
    base = secret_uuid(world.instance, "disk", "base")
    overlay = secret_uuid(world.instance, "disk", "overlay")
    assert set(keys) == {base, overlay}
    assert keys[base] == world.tenant.dek
    out = qemu_io(
        world,
        keys[overlay],
        keys[base],
        "write -P 0x5a 1M 64k",
        "read -P 0x5a 1M 64k",
    )
    assert "Pattern verification failed" not in out
    world.launcher.started(world.instance, True)
    assert not world.secrets.defined
    # one release served make and start
    assert len(world.kms.requests) == 1
    assert world.events() == [
        "agent.launch.prepared",
        "agent.measure.passed",
        "agent.admit.passed",
        "agent.launch.started",
    ]
    verify_chain(read(world.folder / "state/audit.log"))


def test_stop_and_start_asks_again(world: World) -> None:
    world.make()
    world.start()
    world.launcher.started(world.instance, True)
    world.start("start")
    assert [r.purpose for r in world.kms.requests] == ["launch", "start"]
    assert world.kms.requests[1].ticket == ""
    assert world.kms.requests[0].disks == world.kms.requests[1].disks


def test_start_after_a_restart_of_the_agent(world: World) -> None:
    world.make()
    world.start()
    world.launcher.started(world.instance, True)
    world.halt()
    world.boot()
    world.start("start")
    assert world.secrets.defined[world.instance]


def test_start_with_the_key_refused(world: World) -> None:
    """A revoked key stops the instance at its next start."""
    world.make()
    world.start()
    world.launcher.started(world.instance, True)
    world.kms.reply = lambda path: world.kms.error(403, "kms.release.level")
    with pytest.raises(Denied, match="kms.release.level") as caught:
        world.start("start")
    assert caught.value.event == "agent.kms.refused"
    assert not world.secrets.defined
    world.kms.reply = lambda path: None
    world.start("start")


def test_a_payload_is_not_used_after_a_minute(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make()
    monkeypatch.setattr("mh_nova.agent.attempt.MAX_AGE", 0.0)
    world.start()
    assert len(world.kms.requests) == 2


def test_a_launch_that_was_left_is_no_start(world: World) -> None:
    """nova made the disks and did not start: the next start is one."""
    world.make()
    world.start("start")
    assert [r.purpose for r in world.kms.requests] == ["launch", "start"]


def test_opened_only_after_the_hash(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    unwrap, wait = world.prover.unwrap, GrowingHash.wait

    def noted_unwrap(jwe: str, apv: bytes) -> bytes:
        order.append("unwrap")
        return unwrap(jwe, apv)

    def noted_wait(growing: GrowingHash, timeout: float) -> HashedFile:
        hashed = wait(growing, timeout)
        order.append("hashed")
        return hashed

    monkeypatch.setattr(world.prover, "unwrap", noted_unwrap)
    monkeypatch.setattr(GrowingHash, "wait", noted_wait)
    world.make()
    assert order[0] == "hashed"
    assert order.count("unwrap") == 1


def test_no_log_no_launch_and_nothing_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make()
    world.start()

    def full(*args: Any, **kwargs: Any) -> str:
        raise Unavailable("agent.audit", "full")

    monkeypatch.setattr(world.journal, "write", full)
    assert refused(world.start, xml="<domain/>") == "agent.audit"
    assert not world.secrets.defined


def test_warm_launch(world: World) -> None:
    world.make()
    first = world.base.stat()
    world.instance = world.new_instance()
    world.make()
    assert world.base.stat().st_ino == first.st_ino
    world.start()
    assert world.secrets.defined[world.instance]


def test_make_twice(world: World) -> None:
    one = world.make()
    before = world.disk.read_bytes()
    assert world.launcher.make(world.instance, False) == one
    assert world.disk.read_bytes() == before


def test_prepare_replaces_a_dead_attempt(world: World) -> None:
    world.prepare()
    world.prepare()
    world.download()
    world.launcher.make(world.instance, True)
    assert world.disk.exists()


def test_retry_keeps_an_overlay_that_is_there(world: World) -> None:
    """The uuid in its header is the one that is asked for."""
    world.make()
    before = world.disk.read_bytes()
    world.launcher.forget(world.instance)
    world.make()
    assert world.disk.read_bytes() == before
    world.start()


def test_two_launches_of_one_image(world: World) -> None:
    """Both follow the one download; nova's lock lets one write it."""
    first = world.instance
    world.prepare()
    second = world.new_instance()
    world.instance = second
    world.prepare()
    world.download()
    world.launcher.make(first, True)
    world.launcher.make(second, False)
    assert (world.instances / first / "disk").exists()
    assert world.disk.exists()


def test_a_refused_launch_does_not_spoil_the_other(world: World) -> None:
    first = world.instance
    world.prepare(key_url=world.kms.url)
    world.instance = second = world.new_instance()
    world.prepare()
    bad = bytearray(world.tenant.data)
    bad[-1] ^= 1
    world.download(bytes(bad))
    assert refused(world.launcher.make, first, True) == "agent.measure.digest"
    assert not world.part.exists()
    world.download()
    world.launcher.make(second, True)
    assert world.disk.exists()


def test_not_prepared(world: World) -> None:
    with pytest.raises(NotFound):
        world.launcher.make(world.instance, True)
    assert refused(world.start) == "agent.record.unknown"


def test_restarted_before_make(world: World) -> None:
    world.prepare()
    world.halt()
    world.boot()
    with pytest.raises(Conflict):
        world.launcher.make(world.instance, True)
    assert refused(world.start) == "agent.start.not-made"


def test_forget(world: World) -> None:
    world.make()
    world.start()
    world.launcher.forget(world.instance)
    assert not world.secrets.defined
    assert refused(world.launcher.disks, world.instance) == (
        "agent.record.unknown"
    )


def test_failed_start(world: World) -> None:
    world.make()
    world.start()
    world.launcher.started(world.instance, False)
    assert not world.secrets.defined
    world.start("start")


# -- refusals of make ----------------------------------------------------


def test_bytes_changed(world: World) -> None:
    bad = bytearray(world.tenant.data)
    bad[70000] ^= 0x40
    assert refused(world.make, bytes(bad)) == "agent.measure.digest"
    assert not world.base.exists()
    assert not world.part.exists()
    assert not world.disk.exists()
    assert world.events()[-1] == "agent.measure.digest"
    # and the same launch, once the cause is gone
    world.make()
    world.start()


def test_bytes_missing(world: World) -> None:
    data = world.tenant.data[:-1]
    assert refused(world.make, data) == "agent.measure.size"


def test_manifest_of_another_tenant(world: World) -> None:
    other = world.tenant.describe().sign(jose.generate_key())
    assert refused(world.make, manifest=other) == (
        "agent.measure.manifest-signature"
    )


def test_manifest_of_another_image(world: World) -> None:
    other = replace(world.tenant.describe(), image=str(uuid.uuid4()))
    token = other.sign(world.tenant.signing)
    # signed by the tenant, but not listed for this key
    assert refused(world.make, manifest=token) == (
        "agent.measure.manifest-digest"
    )
    # listed for this key, but of another image
    world.tenant.manifest = token
    assert refused(world.make) == "agent.measure.image"


def test_manifest_lies_about_the_virtual_size(world: World) -> None:
    other = replace(world.tenant.describe(), virtual_size=16 * MIB)
    world.tenant.manifest = other.sign(world.tenant.signing)
    assert refused(world.make) == "agent.measure.header"


def test_wrong_dek(world: World) -> None:
    """A proxy that answers with a key of its own, else correctly."""
    world.kms.twist = lambda payload: replace(
        payload, dek=Secret(os.urandom(32))
    )
    assert refused(world.make) == "agent.measure.dek"


def test_proxy_with_its_own_manifest_keys(world: World) -> None:
    """What it wraps opens, but the manifest is then the tenant's, not its."""
    own = jose.public(jose.generate_key())
    world.kms.twist = lambda payload: replace(payload, manifest_keys=(own,))
    assert refused(world.make) == "agent.measure.manifest-signature"


def test_proxy_that_swaps_the_manifest_digest(world: World) -> None:
    world.kms.twist = lambda payload: replace(
        payload, manifest_digests=("00" * 32,)
    )
    assert refused(world.make) == "agent.measure.manifest-digest"


@pytest.mark.parametrize(
    "change",
    [
        {"key_id": str(uuid.uuid4())},
        {"purpose": "migrate-in"},
        {"kms_origin": "https://other.test"},
        {"request_digest": bytes(32)},
        {"overlay_keys": {}},
        {"overlay_keys": {"disk": Secret(b"x" * 32), "b": Secret(b"y" * 32)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_answer_to_another_request(
    world: World, change: dict[str, Any]
) -> None:
    world.kms.twist = lambda payload: replace(payload, **change)
    assert refused(world.make) == "agent.release.binding"


@pytest.mark.parametrize("age", [-600, 600])
def test_old_or_future_release(world: World, age: int) -> None:
    world.kms.twist = lambda payload: replace(
        payload, issued_at=payload.issued_at + age
    )
    assert refused(world.make) == "agent.release.time"


@pytest.mark.parametrize(
    "changes", [{"lease": 3600, "signing_jwk": {}}, {"audit": "none given"}]
)
def test_a_lease_that_could_not_be_renewed(
    world: World, changes: dict[str, Any]
) -> None:
    world.kms.twist = lambda payload: replace(payload, **changes)
    assert refused(world.make) == "agent.release.lease"


def test_wrapped_to_an_earlier_boot(world: World) -> None:
    world.prepare()
    world.download()
    while not world.kms.requests:
        time.sleep(0.01)
    world.tpm.reboot()
    assert refused(world.launcher.make, world.instance, True) == (
        "agent.release.unwrap"
    )


def test_hoarded_answer(world: World) -> None:
    """The JWE of one request does not answer another."""
    hoard: list[str] = []

    def keep(jwe: str) -> str:
        hoard.append(jwe)
        return hoard[0]

    world.kms.jwe = keep
    world.make()
    world.instance = world.new_instance()
    assert refused(world.make) == "agent.release.unwrap"


def test_tpm_gone_at_the_gate(world: World) -> None:
    world.prepare()
    world.download()
    while not world.kms.requests:
        time.sleep(0.01)
    world.prover.gone = True
    with pytest.raises(Unavailable) as caught:
        world.launcher.make(world.instance, True)
    assert caught.value.event == "agent.release.tpm"


def test_tpm_gone_before(world: World) -> None:
    world.prover.gone = True
    assert refused(world.prepare) == "agent.guard.tpm"


def test_domain_directory_on_a_disk(world: World) -> None:
    world.conf.set_override(
        "libvirt_domain_dir", str(world.folder), group="agent"
    )
    assert refused(world.prepare) == "agent.guard.tmpfs"


def test_core_dumps(world: World) -> None:
    (world.folder / "qemu.conf").write_text('max_core = "unlimited"\n')
    assert refused(world.prepare) == "agent.guard.core"


def test_another_host(world: World) -> None:
    assert refused(world.prepare, host="node2") == "agent.prepare.host"


def test_flavor_too_small(world: World) -> None:
    disks = (DiskRecord("disk", 4 * MIB, str(uuid.uuid4()), True),)
    assert refused(world.make, disks=disks) == "agent.overlay.size"


def test_directory_of_the_instance_is_a_link(world: World) -> None:
    elsewhere = world.folder / "elsewhere"
    elsewhere.mkdir()
    (world.instances / world.instance).rmdir()
    (world.instances / world.instance).symlink_to(elsewhere)
    assert refused(world.make) == "agent.path.directory"
    assert not list(elsewhere.iterdir())


def test_the_part_is_a_link(world: World) -> None:
    world.prepare()
    secret = world.folder / "secret"
    secret.write_bytes(world.tenant.data)
    world.part.symlink_to(secret)
    assert refused(world.launcher.make, world.instance, True) == (
        "agent.path.link"
    )


def test_somebody_still_writes(world: World) -> None:
    world.prepare()
    world.download()
    with world.part.open("r+b"):
        assert refused(world.launcher.make, world.instance, True) == (
            "agent.measure.writer"
        )


# -- refusals of start ---------------------------------------------------


def test_foreign_disk(world: World) -> None:
    world.make()
    xml = world.xml().replace(
        "</devices>",
        '<disk type="file" device="disk"><source file="/tmp/x"/>'
        '<target dev="vdb"/></disk></devices>',
    )
    assert refused(world.start, xml=xml) == "agent.admit.foreign-disk"
    assert world.secrets.ever == 0
    assert world.events()[-1] == "agent.admit.foreign-disk"
    world.start("start")


def test_user_data(world: World) -> None:
    world.make(user_data_digest="ab" * 32)
    assert refused(world.start) == "agent.admit.user-data"


def test_the_base_was_replaced(world: World) -> None:
    world.make()
    data = bytearray(world.base.read_bytes())
    data[-1] ^= 1
    world.base.unlink()
    world.base.write_bytes(bytes(data))
    assert refused(world.start) == "agent.measure.digest"


def test_the_base_is_gone(world: World) -> None:
    world.make()
    world.base.unlink()
    assert refused(world.start) == "agent.path.file"
    # nova fetches it again
    world.launcher.prepare(world.record(), "start", "")
    world.download()
    world.launcher.make(world.instance, True)
    world.start("start")


def test_a_failed_fetch_does_not_orphan_the_disks(world: World) -> None:
    world.make()
    base = world.base.read_bytes()
    world.base.unlink()
    world.prepare()
    world.download(base[:-1])
    assert refused(world.launcher.make, world.instance, True) == (
        "agent.measure.size"
    )
    # another launch of the image puts the base there
    first, world.instance = world.instance, world.new_instance()
    world.make()
    world.instance = first
    world.start("start")


def test_report(world: World) -> None:
    """Claims go to the attestation server, with a quote over them."""
    world.conf.set_override("attest_url", world.kms.origin, group="agent")
    got: list[str] = []

    def reply(path: str) -> Any:
        got.append(path)
        if path == "/v1/nonces":
            nonce = "A" * 43
            return world.kms.json({"nonce": nonce, "expires_in": 60})
        if path == "/v1/vm-reports":
            return world.kms.json({"report": "a.b.c"}, 201)
        return None

    world.kms.reply = reply
    world.reporter.start()
    world.make()
    world.start()
    world.launcher.started(world.instance, True)
    for _ in range(200):
        if world.events()[-1] == "agent.report.accepted":
            break
        time.sleep(0.02)
    assert world.events()[-1] == "agent.report.accepted"
    assert got[-2:] == ["/v1/nonces", "/v1/vm-reports"]
    world.reporter.stop()


def test_report_refused(world: World) -> None:
    world.conf.set_override("attest_url", world.kms.origin, group="agent")
    world.make()
    world.start()
    world.kms.reply = lambda path: world.kms.error(403, "attest.report.nonce")
    world.reporter.start()
    world.launcher.started(world.instance, True)
    for _ in range(200):
        if world.events()[-1] == "agent.report.failed":
            break
        time.sleep(0.02)
    assert world.events()[-1] == "agent.report.failed"
    world.reporter.stop()

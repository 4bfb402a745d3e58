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
"""The two gates of a live migration, before a real attestation server."""

import contextlib
import dataclasses
import datetime
import json
import os
import resource
import shutil
import ssl
import stat
import tempfile
import threading
import time
import uuid
import wsgiref.simple_server
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mh_attest import authority as attest_authority
from mh_core import jose
from mh_core.errors import MHError, Unavailable
from mh_core.evidence import Evidence
from mh_core.migration import pinned_name
from mh_nova.agent.launch import Launcher
from mh_nova.agent.migration_tls import MigrationTls, jwk_of
from mh_nova.agent.store import DiskRecord
from tests.fixture.tls import Authority
from tests.functional.mh_nova.agent.world import (
    HOST,
    MIB,
    SoftProver,
    World,
)
from tests.unit.mh_attest.host import SoftHost, log_of
from tests.unit.mh_attest.world import ISSUER, template
from tests.unit.mh_attest.world import World as Attest

pytestmark = pytest.mark.skipif(
    not Path("/dev/shm").is_dir(), reason="needs a tmpfs"
)


class HostProver(SoftProver):
    """Over the TPM of a host that the attestation server knows."""

    def __init__(self, host: SoftHost) -> None:
        super().__init__(host.tpm)
        self.host = host

    @property
    def ak_certificate(self) -> str | None:
        return self.host.ak_certificate or None

    def _evidence(self, label: str, nonce: bytes, claims: bytes) -> Evidence:
        self.check()
        return Evidence.parse(self.host.evidence(label, nonce, claims))


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_args: Any) -> None:
        pass


class Threaded(ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


class Pair:
    """node1, whose agent is under test; node2, which answers honestly; the
    attestation server over real TLS."""

    def __init__(self, made: Path, folder: Path) -> None:
        (folder / "attest").mkdir()
        (folder / "node1").mkdir()
        self.attest = Attest(made, folder / "attest")
        self.source = self.attest.enrolled()
        self.destination = self.attest.enrolled("node2")
        self.agent = World(folder / "node1")
        self.tls = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="mh-test-"))
        self.tls.chmod(0o750)
        (folder / "node1/qemu.conf").write_text(
            "max_core = 0\nmigrate_tls_force = 1\n"
            "migrate_tls_x509_verify = 1\n"
            f'migrate_tls_x509_cert_dir = "{self.tls}"\n'
        )
        self.jwk = folder / "attest.jwk"
        self.jwk.write_text(json.dumps(self.attest.service.authority.jwk()))
        self.serve(folder)
        conf = self.agent.conf
        for group, name, value in (
            ("agent", "live_migration", True),
            ("agent", "attest_url", self.url),
            ("agent", "attest_ca_file", str(self.authority.ca_file)),
            ("migration", "tls_dir", str(self.tls)),
            ("migration", "authority_jwk_file", str(self.jwk)),
            ("migration", "issuer", ISSUER),
            ("migration", "levels", ["trusted"]),
        ):
            conf.set_override(name, value, group=group)
        self.boot()

    def serve(self, folder: Path) -> None:
        self.authority = Authority(folder / "tls")
        leaf = self.authority.issue("attest")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(leaf.certificate, leaf.key)
        self.server = wsgiref.simple_server.make_server(
            "127.0.0.1", 0, self.attest.app, Threaded, Quiet
        )
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True
        )
        self.url = f"https://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, args=(0.05,), daemon=True
        ).start()

    def boot(self) -> None:
        """The agent, again; its memory is gone."""
        self.prover = HostProver(self.source)
        self.migration = MigrationTls(self.agent.conf, self.prover)
        self.launcher = Launcher(
            replace(
                self.agent.launcher._p,
                prover=self.prover,
                migration=self.migration,
            )
        )

    def make(self) -> None:
        """One instance of ours on node1."""
        self.agent.make()

    def out(self, destination: str = "node2") -> dict[str, Any]:
        return self.launcher.migrate_out(self.agent.instance, destination)

    def stop(self) -> None:
        self.launcher.stop()
        self.server.shutdown()
        self.server.server_close()
        self.agent.stop()
        self.attest.close()
        shutil.rmtree(self.tls)
        for name in ("authority_jwk_file", "tls_dir", "issuer", "levels"):
            # groups are shared by all configurations of a process
            self.agent.conf.clear_override(name, group="migration")
        for name in ("live_migration", "attest_url"):
            self.agent.conf.clear_override(name, group="agent")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template(tmp_path_factory.mktemp("attest"))


@pytest.fixture
def pair(made: Path, tmp_path: Path) -> Iterator[Pair]:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    one = Pair(made, tmp_path)
    yield one
    one.stop()
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(MHError) as caught:
        call()
    return f"{caught.value.event}: {caught.value.message}"


def load(pair: Pair, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((pair.tls / name).read_bytes())


# -- key and certificate ------------------------------------------------------


def test_the_files_that_libvirt_wants(pair: Pair) -> None:
    found = pair.migration.renew()
    assert sorted(path.name for path in pair.tls.iterdir()) == [
        "ca-cert.pem",
        "client-cert.pem",
        "client-key.pem",
        "server-cert.pem",
        "server-key.pem",
    ]
    for path in pair.tls.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    certificate = load(pair, "server-cert.pem")
    ca = load(pair, "ca-cert.pem")
    certificate.verify_directly_issued_by(ca)
    private = (pair.tls / "server-key.pem").read_bytes()
    key = load_pem_private_key(private, None)
    assert certificate.public_key() == key.public_key()
    names = certificate.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ).value.get_values_for_type(x509.DNSName)
    assert names[0] == found.name
    assert found.name == pinned_name(jwk_of(certificate.public_key()))  # type: ignore[arg-type]
    assert pair.migration.certified() == found
    # the key is nowhere else
    for path in pair.agent.folder.rglob("*"):
        assert not path.is_file() or private not in path.read_bytes()


def test_the_key_stays_and_the_certificate_is_renewed(pair: Pair) -> None:
    pair.migration.renew()
    key = (pair.tls / "server-key.pem").read_bytes()
    first = load(pair, "server-cert.pem")
    pair.migration.renew()
    assert (pair.tls / "server-key.pem").read_bytes() == key
    assert load(pair, "server-cert.pem") != first
    pair.boot()
    pair.migration.renew()
    assert (pair.tls / "client-key.pem").read_bytes() == key
    (pair.tls / "server-key.pem").write_bytes(b"rubbish")
    pair.boot()
    pair.migration.renew()
    assert (pair.tls / "server-key.pem").read_bytes() not in (key, b"rubbish")


def test_renewed_in_the_background(pair: Pair) -> None:
    pair.attest.conf.set_override("certificate_life", 20, "migration")
    try:
        pair.migration.start()
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                found = pair.migration.certified()
                break
            except MHError:
                time.sleep(0.05)
        assert found.expires_at <= time.time() + 20
        assert 5 < pair.migration._renew_at - time.monotonic() <= 11
    finally:
        pair.migration.stop()
        pair.attest.conf.clear_override("certificate_life", "migration")


def test_no_key_on_a_disk(pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    pair.agent.conf.set_override("tls_dir", str(folder), "migration")
    pair.boot()
    said = refused(pair.migration.renew)
    if "tmpfs" not in said:
        pytest.skip("the tests' own folder is on tmpfs")
    assert said.startswith("agent.migrate.tmpfs")
    assert list(folder.iterdir()) == []


def test_no_key_where_others_write_or_libvirt_does_not_look(
    pair: Pair,
) -> None:
    pair.tls.chmod(0o770)
    assert "agent.migrate.directory" in refused(pair.migration.renew)
    pair.tls.chmod(0o750)
    conf = pair.agent.folder / "qemu.conf"
    conf.write_text(
        conf.read_text() + 'migrate_tls_x509_cert_dir = "/elsewhere"\n'
    )
    assert "agent.migrate.directory" in refused(pair.migration.renew)
    assert list(pair.tls.iterdir()) == []


def test_a_host_that_does_not_pass_gets_none(pair: Pair) -> None:
    pair.source.boot(log_of(kernel=b"kernel 2"))
    assert "attest.appraise.host-policy" in refused(pair.migration.renew)
    assert not (pair.tls / "server-cert.pem").exists()
    assert "agent.migrate.certificate" in refused(pair.migration.certified)


# -- the source's gate --------------------------------------------------------


def test_leave_names_the_key_of_the_destination(pair: Pair) -> None:
    pair.make()
    pair.migration.renew()
    leave = pair.out()
    assert leave["event"] == "agent.migrate.granted"
    assert leave["tls_name"] == pinned_name(
        jose.public(pair.destination.tls_key)
    )
    assert time.time() < leave["expires_at"] <= time.time() + 60
    assert pair.agent.events()[-1] == "agent.migrate.granted"


def _fails_now(pair: Pair) -> None:
    pair.destination.boot(log_of(kernel=b"kernel 2"))


def _deleted(pair: Pair) -> None:
    pair.attest.call("DELETE", "/v1/hosts/node2", None, "operator", 204)


def _source_fails(pair: Pair) -> None:
    pair.source.boot(log_of(kernel=b"kernel 2"))


def _other_authority(pair: Pair) -> None:
    pair.jwk.write_text(json.dumps(jose.public(jose.generate_key())))


def _no_authority(pair: Pair) -> None:
    pair.jwk.unlink()


def _other_issuer(pair: Pair) -> None:
    pair.agent.conf.set_override("issuer", "https://other", "migration")


def _level(pair: Pair) -> None:
    pair.agent.conf.set_override("levels", ["boot-only"], "migration")


def _no_certificate(pair: Pair) -> None:
    pair.boot()


def _silent(pair: Pair) -> None:
    pair.server.shutdown()
    pair.server.server_close()


def _off(pair: Pair) -> None:
    pair.agent.conf.set_override("live_migration", False, "agent")


def _unsound(pair: Pair) -> None:
    (pair.agent.folder / "qemu.conf").write_text("max_core = 0\n")


def _other_ca(pair: Pair) -> None:
    folder = pair.attest.folder / "other"
    attest_authority.create(folder, datetime.datetime.now(datetime.UTC))
    other = attest_authority.load(folder, ISSUER)
    service = pair.attest.service
    service.authority = replace(
        service.authority,
        migration_ca=other.migration_ca,
        migration_key=other.migration_key,
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_fails_now, "agent.migrate.refused: .*attest.appraise.host-policy"),
        (_deleted, "agent.migrate.refused: .*attest.migration.destination"),
        (_source_fails, "agent.migrate.refused: .*attest.appraise"),
        (_other_authority, "agent.migrate.result: .*core.jose.signature"),
        (_no_authority, "agent.migrate.authority"),
        (_other_issuer, "agent.migrate.result: .*core.migration.issuer"),
        (_level, "agent.migrate.result: .*core.migration.level"),
        (_no_certificate, "agent.migrate.certificate"),
        (_silent, "agent.migrate.unavailable"),
        (_off, "agent.migrate.disabled"),
        (_unsound, "agent.guard.migration-tls"),
        (_other_ca, "agent.migrate.ca"),
    ],
)
def test_no_leave(
    pair: Pair, change: Callable[[Pair], None], said: str
) -> None:
    pair.make()
    pair.migration.renew()
    pair.out()
    change(pair)
    with pytest.raises(MHError, match="") as caught:
        pair.out()
    event = said.partition(":")[0]
    assert caught.value.event == event
    detail = said.rpartition(".*")[2] if ".*" in said else ""
    assert detail in caught.value.message
    # the refusal is on record, like the leave before it
    assert pair.agent.events()[-1] == event


def test_no_leave_for_an_instance_that_is_not_there(pair: Pair) -> None:
    pair.migration.renew()
    assert refused(pair.out).startswith("agent.record.unknown")
    pair.agent.prepare()
    assert refused(pair.out).startswith("agent.migrate.not-made")


def test_no_leave_to_where_it_is(pair: Pair) -> None:
    pair.make()
    pair.migration.renew()
    assert refused(lambda: pair.out(HOST)).startswith(
        "agent.migrate.destination"
    )


# -- the destination's gate ---------------------------------------------------


def test_in_only_where_it_is_expected(world: World) -> None:
    said = refused(
        lambda: world.launcher.migrate_in(world.instance, world.xml())
    )
    assert said.startswith("agent.migrate.not-expected")
    world.make()
    # launched here, or stopped here: still no leave to come in
    said = refused(
        lambda: world.launcher.migrate_in(world.instance, world.xml())
    )
    assert said.startswith("agent.migrate.not-expected")
    assert world.secrets.ever == 0


def arrive(world: World) -> None:
    world.launcher.prepare(world.record(), "migrate-in", "")
    world.download()
    world.launcher.make(world.instance, True)


def as_libvirt(xml: str) -> str:
    """What libvirt adds of itself to a guest that runs."""
    return xml.replace(
        "<vcpu",
        "<resource><partition>/machine</partition></resource>"
        "<seclabel type='dynamic' model='dac' relabel='yes'/><vcpu",
        1,
    )


def test_in_as_at_a_start(world: World) -> None:
    arrive(world)
    # made, and nothing in libvirt before libvirt itself asks
    assert world.secrets.ever == 0
    event, _ = world.launcher.migrate_in(
        world.instance, as_libvirt(world.xml())
    )
    assert event == "agent.start.granted"
    assert len(world.secrets.defined[world.instance]) == 2
    assert {r.purpose for r in world.kms.requests} == {"migrate-in"}
    world.launcher.started(world.instance, True)
    assert world.secrets.defined == {}
    assert "agent.launch.started" in world.events()


def test_what_came_in_is_told_until_it_is_over(world: World) -> None:
    world.make()
    world.launcher.started(world.instance, True)
    # disks of a guest of this host, and those that were carried here
    assert world.launcher.unfinished() == ([], [])
    world.launcher.prepare(world.record(), "migrate-in", "")
    assert world.launcher.unfinished() == ([], [])
    world.launcher.forget(world.instance)
    os.unlink(world.disk)
    world.launcher.prepare(world.record(), "migrate-in", "")
    assert world.launcher.unfinished() == ([world.instance], [])
    world.launcher.make(world.instance, False)
    world.launcher.migrate_in(world.instance, as_libvirt(world.xml()))
    # also by an agent that was started anew meanwhile
    world.launcher._attempts.drop(world.instance)
    assert world.launcher.unfinished() == ([world.instance], [])
    world.launcher.started(world.instance, True)
    assert world.launcher.unfinished() == ([], [])
    assert world.store.instance(world.instance).made


class Handover:
    """Leases as the key server knows them; away while ``away``."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.away = False

    def handover(self, instance: str, to: str) -> None:
        self.said.append((instance, to))
        if self.away:
            raise Unavailable("agent.kms.unavailable", "away")

    def left(self, instance: str) -> None:
        raise AssertionError


def test_what_was_offered_is_told_until_it_is_taken_back(
    world: World,
) -> None:
    world.make()
    world.launcher.started(world.instance, True)
    server = Handover()
    world.launcher._p = dataclasses.replace(world.launcher._p, handover=server)
    for away in (False, True):
        # also where it cannot be told whether the key server has heard it
        server.away = away
        with contextlib.suppress(Unavailable):
            world.launcher.migrate_offer(world.instance, "node3")
        assert world.launcher.unfinished() == ([], [world.instance])
        server.away = True
        with pytest.raises(Unavailable):
            world.launcher.migrate_offer(world.instance, "")
        assert world.launcher.unfinished() == ([], [world.instance])
        server.away = False
        world.launcher.migrate_offer(world.instance, "")
        assert world.launcher.unfinished() == ([], [])
    assert {to for _, to in server.said} == {"node3", ""}


def test_in_with_a_domain_that_is_not_allowed(world: World) -> None:
    arrive(world)
    xml = world.xml().replace(
        "</devices>",
        "<filesystem type='mount'><source dir='/'/><target dir='h'/>"
        "</filesystem></devices>",
        1,
    )
    said = refused(lambda: world.launcher.migrate_in(world.instance, xml))
    assert said.startswith("agent.admit.passthrough")
    assert world.secrets.ever == 0
    # and that was the only try
    said = refused(
        lambda: world.launcher.migrate_in(world.instance, world.xml())
    )
    assert said.startswith("agent.migrate.not-expected")


def test_each_host_has_a_disk_and_a_key_of_its_own(world: World) -> None:
    world.make()
    first = world.kms.requests[-1].disks
    world.launcher.started(world.instance, False)
    world.launcher.forget(world.instance)
    os.unlink(world.disk)
    record = world.record(
        disks=(DiskRecord("disk", 16 * MIB, str(uuid.uuid4()), True),)
    )
    world.launcher.prepare(record, "migrate-in", "")
    world.launcher.make(world.instance, False)
    second = world.kms.requests[-1].disks
    assert [d.name for d in first] == [d.name for d in second]
    assert first[0].luks_uuid != second[0].luks_uuid

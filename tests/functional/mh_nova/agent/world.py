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
"""A compute host, a tenant, and a key server that can lie.

The agent's own parts are real; the TPM is software (``softtpm``), libvirt
is a note of what was put into it.
"""

import hashlib
import http.server
import json
import os
import resource
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oslo_config import cfg

from mh_core import jose, manifest, volume
from mh_core.encoding import b64u, canonical_json, unb64u
from mh_core.errors import Unavailable
from mh_core.evidence import Evidence, release_claims, verify_host
from mh_core.image import overlay
from mh_core.launch_policy import LaunchPolicy
from mh_core.lease import LeaseGrant, LeaseRequest
from mh_core.manifest import Manifest
from mh_core.payload import ReleasePayload
from mh_core.request import Disk, KeyRequest
from mh_core.secret import Secret
from mh_core.tpm.public import Public
from mh_core.tpm.quote import (
    LABEL_HOST,
    LABEL_MIGRATION,
    LABEL_MIGRATION_KEY,
    LABEL_RELEASE,
    LABEL_SNAPSHOT,
    LABEL_VM,
    extra_data,
)
from mh_nova.agent import conf as agent_conf
from mh_nova.agent.bases import Bases
from mh_nova.agent.guard import Guard
from mh_nova.agent.journal import Journal
from mh_nova.agent.kms import KmsClient, PendingRequests
from mh_nova.agent.launch import Launcher
from mh_nova.agent.lease import Leases
from mh_nova.agent.lease_client import LeaseClient
from mh_nova.agent.lease_store import LeaseStore
from mh_nova.agent.overlay import Overlays, secret_uuid
from mh_nova.agent.parts import Parts
from mh_nova.agent.paths import PART, Root, base_name
from mh_nova.agent.receipts import Receipts, disks_there
from mh_nova.agent.report import Reporter
from mh_nova.agent.service import load_measurers
from mh_nova.agent.store import DiskRecord, InstanceRecord, Store
from tests.fixture import softtpm, tls

MIB = 1 << 20
KEY_ID = "0f1e2d3c-4b5a-4978-8675-645342312011"
HOST = "node1"


class SoftProver:
    """The prover over a software TPM."""

    def __init__(self, tpm: softtpm.SoftTpm) -> None:
        self.tpm = tpm
        self.gone = False
        self.quotes = 0

    @property
    def ak_certificate(self) -> str | None:
        return self.tpm.certificate()

    def ak_pem(self) -> str:
        return self.tpm.ak.pem()

    def check(self) -> None:
        if self.gone:
            raise Unavailable("agent.tpm.unavailable", "gone")

    def _evidence(self, label: str, nonce: bytes, claims: bytes) -> Evidence:
        self.check()
        self.quotes += 1
        return self.tpm.evidence(label, nonce, claims)

    def release_evidence(
        self, nonce: bytes, request_digest: bytes
    ) -> Evidence:
        claims = release_claims(request_digest, self.tpm.bind)
        return self._evidence(LABEL_RELEASE, nonce, claims)

    def snapshot_evidence(
        self, nonce: bytes, claims_digest: bytes
    ) -> Evidence:
        claims = release_claims(claims_digest, self.tpm.bind)
        return self._evidence(LABEL_SNAPSHOT, nonce, claims)

    def host_evidence(self, nonce: bytes) -> Evidence:
        return self._evidence(LABEL_HOST, nonce, self.tpm.bind.name)

    def vm_evidence(self, nonce: bytes, claims_digest: bytes) -> Evidence:
        return self._evidence(LABEL_VM, nonce, claims_digest)

    def migration_key_evidence(self, nonce: bytes, claims: bytes) -> Evidence:
        return self._evidence(LABEL_MIGRATION_KEY, nonce, claims)

    def migration_evidence(self, nonce: bytes, claims: bytes) -> Evidence:
        return self._evidence(LABEL_MIGRATION, nonce, claims)

    def unwrap(self, jwe: str, apv: bytes) -> bytes:
        self.check()
        return jose.unwrap(jwe, self.tpm.bind_jwk, apv)


@dataclass
class NotedSecrets:
    """libvirt's place: what is defined now, and ever was."""

    defined: dict[str, dict[str, bytes]] = field(default_factory=dict)
    ever: int = 0
    #: Uuid of the last secret for a virtual TPM, or empty.
    tpms: dict[str, str] = field(default_factory=dict)

    def define(
        self, instance: str, keys: Mapping[str, Secret], tpm: str = ""
    ) -> None:
        self.tpms[instance] = tpm
        self.defined[instance] = {
            name: key.reveal() for name, key in keys.items()
        }
        self.ever += len(keys)

    def drop(self, instance: str) -> None:
        self.defined.pop(instance, None)

    def sweep(self) -> None:
        self.defined.clear()


@dataclass
class NotedGuests:
    """libvirt's place: what runs, and what was ended how."""

    active: set[str] = field(default_factory=set)
    ended: list[tuple[str, str]] = field(default_factory=list)
    #: libvirt does not answer
    gone: bool = False
    #: libvirt answers nobody, ever
    hangs: threading.Event | None = None

    def running(self) -> frozenset[str]:
        if self.hangs is not None:
            self.hangs.wait(30)
        if self.gone:
            raise Unavailable("agent.libvirt", "gone")
        return frozenset(self.active)

    def stop(self, instance: str) -> bool:
        self.running()
        return self._end(instance, "stopped")

    def kill(self, instance: str) -> bool:
        return self._end(instance, "killed")

    def _end(self, instance: str, how: str) -> bool:
        ran = instance in self.active
        self.active.discard(instance)
        if ran:
            self.ended.append((instance, how))
        return ran


@dataclass
class Tenant:
    """Key, signing key, one image and its manifest."""

    folder: Path
    virtual_size: int = 8 * MIB
    launch_policy: LaunchPolicy = LaunchPolicy()
    dek: bytes = field(default_factory=lambda: os.urandom(32))
    root: bytes = field(default_factory=lambda: os.urandom(32))
    signing: dict[str, Any] = field(default_factory=jose.generate_key)
    image: str = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        self.file = self.folder / "tenant.qcow2"
        fd = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        overlay.write(
            fd, self.virtual_size, self.dek, uuid.uuid4(), os.urandom, None
        )
        os.close(fd)
        self.manifest = self.describe().sign(self.signing)

    @property
    def data(self) -> bytes:
        return self.file.read_bytes()

    def describe(self) -> Manifest:
        data = self.data
        return Manifest(
            image=self.image,
            key_id=KEY_ID,
            format="qcow2+luks",
            size=len(data),
            virtual_size=self.virtual_size,
            sha256=hashlib.sha256(data).hexdigest(),
            sha512=hashlib.sha512(data).hexdigest(),
            launch_policy=self.launch_policy,
        )


Payload = Callable[[ReleasePayload], ReleasePayload]
Reply = tuple[int, dict[str, str], bytes]


class Kms:
    """An honest key server over real TLS; tests make it lie.

    :ivar twist: changes the payload before it is wrapped.
    :ivar reply: takes the place of the answer to a path.
    """

    def __init__(
        self, authority: tls.Authority, tenant: Tenant, enroller: Any
    ) -> None:
        self.tenant = tenant
        self.enroller = enroller
        self.transport = jose.generate_key()
        self.asked: list[str] = []
        self.requests: list[KeyRequest] = []
        self.twist: Payload = lambda payload: payload
        self.reply: Callable[[str], Reply | None] = lambda path: None
        self.jwe: Callable[[str], str] = lambda jwe: jwe
        self.lookup: Callable[[str], KeyRequest | None] = lambda url: None
        self.delay = 0.0
        self.bind_jwk: dict[str, Any] = {}
        self.lease = 0
        self.signing = jose.generate_key()
        self.told: list[LeaseRequest] = []
        #: Instance to the id of its one lease.
        self.held: dict[str, str] = {}
        self._nonces: set[str] = set()
        leaf = authority.issue(f"kms-{uuid.uuid4()}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(leaf.certificate, leaf.key)
        kms = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                kms.serve(self)

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), Handler
        )
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_args: None  # type: ignore[method-assign]
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True
        )
        self.origin = f"https://127.0.0.1:{self._server.server_port}"
        threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        ).start()

    @property
    def url(self) -> str:
        return f"{self.origin}/v1/keys/{KEY_ID}"

    @property
    def compat_url(self) -> str:
        return f"{self.origin}/data-encryption-key/request/{KEY_ID}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length", "0"))
        body = handler.rfile.read(length)
        self.asked.append(handler.path)
        time.sleep(self.delay)
        status, headers, data = self.reply(handler.path) or self.answer(
            handler.path, body
        )
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        try:
            handler.wfile.write(data)
        except OSError:
            pass

    def answer(self, path: str, body: bytes) -> Reply:
        if path.endswith("/challenge"):
            nonce = b64u(os.urandom(32))
            self._nonces.add(nonce)
            return self.json({"nonce": nonce, "expires_in": 60})
        if path.endswith("/release"):
            document = json.loads(body)
            self._nonces.remove(document["nonce"])
            request = KeyRequest.parse(document["request"])
            evidence = Evidence.parse(document["evidence"])
            claims = release_claims(
                request.digest(), Public.parse(evidence.bind_public)
            )
            host = verify_host(
                evidence,
                extra=extra_data(
                    LABEL_RELEASE, unb64u(document["nonce"]), claims
                ),
                enrollers=[self.enroller.certificate],
                now=datetime.now(UTC),
            )
            return self.json({"jwe": self.wrap(request, host.bind.jwk())})
        if path.endswith("/lease"):
            document = json.loads(body)
            self._nonces.remove(document["nonce"])
            proved = unb64u(document["nonce"])
            asked = LeaseRequest.parse(document["request"])
            evidence = Evidence.parse(document["evidence"])
            claims = release_claims(
                asked.digest(), Public.parse(evidence.bind_public)
            )
            verify_host(
                evidence,
                extra=extra_data(LABEL_RELEASE, proved, claims),
                enrollers=[self.enroller.certificate],
                now=datetime.now(UTC),
            )
            self.told.append(asked)
            grant = LeaseGrant(
                asked.digest(), proved, self.lease, int(time.time()), "kms#0"
            )
            return self.json({"lease": grant.sign(self.signing)})
        # the seed's form
        request_found = self.lookup(self.origin + path)
        if request_found is None:
            return self.error(404, "kms.compat.nothing-pending")
        bind = self.bind_jwk
        return (
            200,
            {"Content-Type": "application/jose"},
            self.wrap(request_found, bind).encode(),
        )

    def payload(self, request: KeyRequest) -> ReleasePayload:
        return ReleasePayload(
            purpose=request.purpose,
            key_id=request.key_id,
            dek=Secret(self.tenant.dek),
            overlay_keys={
                disk.name: Secret(self._key(request, disk))
                for disk in request.disks
            },
            manifest_keys=(jose.public(self.tenant.signing),),
            manifest_digests=(manifest.digest(self.tenant.manifest),),
            kms_origin=self.origin,
            transport_jwk=jose.public(self.transport),
            lease=self.lease,
            signing_jwk=jose.public(self.signing),
            request_digest=request.digest(),
            issued_at=int(time.time()),
            audit=f"kms#{len(self.requests)}",
            launch_policy=self.tenant.launch_policy,
        )

    def _key(self, request: KeyRequest, disk: Disk) -> bytes:
        root, name = self.tenant.root, uuid.UUID(disk.luks_uuid)
        if request.purpose == volume.ATTACH:
            return volume.volume_key(root, name)
        return overlay.overlay_key(
            root, uuid.UUID(request.instance), disk.name, name
        )

    def wrap(self, request: KeyRequest, bind: Mapping[str, Any]) -> str:
        self.requests.append(request)
        payload = self.twist(self.payload(request))
        if request.holds:
            self.held[request.instance] = payload.audit
        return self.jwe(jose.wrap(payload.to_bytes(), bind, request.digest()))

    @staticmethod
    def json(value: Any, status: int = 200) -> Reply:
        return (
            status,
            {"Content-Type": "application/json"},
            canonical_json(value),
        )

    @classmethod
    def error(cls, status: int, event: str, message: str = "no") -> Reply:
        return cls.json(
            {
                "error": {
                    "event": event,
                    "message": message,
                    "request_id": "req-1",
                    "audit": "",
                }
            },
            status,
        )


class World:
    """One host with one tenant's key server, in a folder."""

    MEASURERS: tuple[str, ...] = ("ciphertext",)

    def __init__(self, folder: Path, **tenant: Any) -> None:
        # as mh-agent itself does at its start
        self._cores = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, self._cores[1]))
        self.folder = folder
        self.tenant = Tenant(folder, **tenant)
        self.authority = tls.Authority(folder / "tls")
        self.enroller = softtpm.Enroller()
        self.tpm = softtpm.SoftTpm(self.enroller, HOST)
        self.kms = Kms(self.authority, self.tenant, self.enroller)
        self.kms.bind_jwk = self.tpm.bind.jwk()
        self.instances = folder / "instances"
        (self.instances / "_base").mkdir(parents=True)
        (folder / "qemu.conf").write_text("max_core = 0\n")
        for name, text in (("swaps", ""), ("sys/kernel/core_pattern", "core")):
            path = folder / "root/proc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.conf = self.options()
        self.instance = self.new_instance()
        #: Of the last guest, by secret uuid, where a test notes them.
        self.keys: dict[str, bytes] = {}
        self.store = Store(folder / "state")
        self.guests = NotedGuests()
        self.boot()

    def options(self) -> cfg.ConfigOpts:
        conf = cfg.ConfigOpts()
        agent_conf.register_opts(conf)
        conf([], project="mh-agent", default_config_files=[])
        for name, value in {
            "host": HOST,
            "instances_path": str(self.instances),
            "state_dir": str(self.folder / "state"),
            "kms_origins": [self.kms.origin],
            "kms_ca_file": str(self.authority.ca_file),
            "attest_ca_file": str(self.authority.ca_file),
            "libvirt_domain_dir": "/dev/shm",
            "libvirt_kept": [],
            "qemu_conf": str(self.folder / "qemu.conf"),
            "volume_dirs": [str(self.folder / "volumes")],
            "timeout": 5,
            "measure_timeout": 20,
        }.items():
            conf.set_override(name, value, group="agent")
        return conf

    def new_instance(self) -> str:
        instance = str(uuid.uuid4())
        (self.instances / instance).mkdir()
        return instance

    #: In libvirt's place, where a test has one.
    libvirt: Any = None

    def boot(self) -> None:
        """Start the agent (again): all it knows is in its files."""
        self.root = Root(str(self.instances))
        self.prover = SoftProver(self.tpm)
        self.pending = PendingRequests()
        self.kms.lookup = self.pending.find
        self.secrets = NotedSecrets()
        self.journal = Journal(self.folder / "state" / "audit.log")
        self.bases = Bases(self.root, self.store)
        self.overlays = Overlays(self.conf, self.root)
        self.reporter = Reporter(
            self.conf, self.prover, self.journal, waits=(0.05, 0.05)
        )
        self.guard = Guard(self.conf, self.prover, str(self.folder / "root"))
        self.measurers = load_measurers(list(self.MEASURERS))
        for measurer in self.measurers.values():
            measurer.configure(self.conf.agent)
        kms = KmsClient(self.conf, self.prover, self.pending)
        leases = LeaseStore(self.folder / "state")
        self.leases = Leases(
            leases,
            self.guests,
            self.journal,
            look=0.2,
            asker=LeaseClient(kms),
        )
        self.receipts = Receipts(
            leases,
            LeaseClient(kms),
            self.journal,
            disks_there(self.root, self.store),
            first=0.1,
        )
        self.launcher = Launcher(
            Parts(
                conf=self.conf,
                root=self.root,
                prover=self.prover,
                kms=kms,
                store=self.store,
                bases=self.bases,
                overlays=self.overlays,
                secrets=self.secrets,
                journal=self.journal,
                guard=self.guard,
                reporter=self.reporter,
                measurers=self.measurers,
                libvirt=self.libvirt,
                leases=self.leases,
                receipts=self.receipts,
            )
        )

    def halt(self) -> None:
        self.leases.stop()
        self.receipts.stop()
        self.launcher.stop()
        self.journal.close()

    def stop(self) -> None:
        self.halt()
        self.kms.stop()
        resource.setrlimit(resource.RLIMIT_CORE, self._cores)

    # -- what nova does

    def record(self, **changes: Any) -> InstanceRecord:
        record = InstanceRecord(
            instance=self.instance,
            image=self.tenant.image,
            project="p" * 32,
            user="u" * 32,
            host=HOST,
            key_url=self.kms.url,
            key_id=KEY_ID,
            manifest=self.tenant.manifest,
            compat=False,
            user_data_digest="",
            disks=(DiskRecord("disk", 16 * MIB, str(uuid.uuid4()), True),),
        )
        return replace(record, **changes)

    @property
    def part(self) -> Path:
        return self.base.with_name(self.base.name + PART)

    @property
    def base(self) -> Path:
        return self.instances / "_base" / base_name(self.tenant.image)

    @property
    def disk(self) -> Path:
        return self.instances / self.instance / "disk"

    def download(self, data: bytes | None = None, pause: float = 0) -> None:
        """As nova: in pieces, from start to end."""
        data = self.tenant.data if data is None else data
        with self.part.open("wb") as file:
            for start in range(0, len(data), 65536):
                file.write(data[start : start + 65536])
                file.flush()
                time.sleep(pause)

    def prepare(self, **changes: Any) -> None:
        self.launcher.prepare(self.record(**changes), "launch", "")

    def make(self, data: bytes | None = None, **changes: Any) -> Any:
        """prepare, download, make."""
        self.prepare(**changes)
        there = self.base.exists()
        if not there:
            self.download(data)
        return self.launcher.make(self.instance, not there)

    def xml(self) -> str:
        text = (
            Path(__file__).parents[3] / "vectors/admit/plain-launch.xml"
        ).read_text()
        old = "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10"
        image = "d5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51"
        before = Root("/var/lib/nova/instances")
        for a, b in (
            (before.base(image), self.root.base(self.tenant.image)),
            (before.disk(old, ""), self.root.disk(self.instance, "")),
            *(
                (
                    secret_uuid(old, "disk", layer),
                    secret_uuid(self.instance, "disk", layer),
                )
                for layer in ("overlay", "base")
            ),
            (old, self.instance),
        ):
            assert a in text
            text = text.replace(a, b)
        return text

    def start(self, purpose: str = "launch", xml: str = "") -> Any:
        return self.launcher.start(self.instance, xml or self.xml(), purpose)

    def events(self) -> list[str]:
        """Event ids in the audit log, oldest first."""
        lines = (self.folder / "state/audit.log").read_bytes().splitlines()
        return [
            json.loads(line.rpartition(b"\t")[0])["event"] for line in lines
        ]

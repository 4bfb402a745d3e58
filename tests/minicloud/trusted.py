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
"""The product on the minicloud: who runs what, each with its own folder.

* authority: attestation server, ``mh/attest`` below the base directory;
* tenant: key server, ``mh/kms``; workstation, ``workstation``;
* operator: ``operator`` (client configuration with the operator's token);
* node1, node2: agent and ``mh-nova-compute`` inside the node; node3 too,
  from :meth:`TrustedCloud.second_host` on.

Only certificates and public values are carried from one to another.
"""

from __future__ import annotations

import collections.abc
import json
import os
import pathlib
import shutil
import subprocess
import time
import typing
from importlib.metadata import entry_points

from tests.fixture.tls import Authority, Leaf
from tests.minicloud import heard
from tests.minicloud.cloud import Cloud
from tests.minicloud.layout import REPOSITORY
from tests.minicloud.node import Node
from tests.minicloud.process import CloudError
from tests.minicloud.services import port_open

KMS_PORT = 15543
ATTEST_PORT = 15544
LISTENER_PORT = 15546
PROXY_PORT = 15547
LIAR_PORT = 15548

#: Lets the programs of this tree's tests be found.
SOURCES = {"PYTHONPATH": str(REPOSITORY)}

KMS_ORIGIN = f"https://127.0.0.1:{KMS_PORT}"
ATTEST_ORIGIN = f"https://127.0.0.1:{ATTEST_PORT}"
PROXY_ORIGIN = f"https://127.0.0.1:{PROXY_PORT}"
LIAR_ORIGIN = f"https://127.0.0.1:{LIAR_PORT}"

_KMS = """\
[DEFAULT]
use_stderr = true
[kms]
origin = {KMS}
accepted_origins = {PROXY}
[database]
connection = sqlite:///{folder}/kms.sqlite
[software_key_store]
kek_file = {folder}/kek
[authority]
ca_file = {ca}
tokens = {ATTEST}={folder}/attest.token,{LIAR}={folder}/attest.token
[server]
bind_host = 127.0.0.1
bind_port = {port}
certificate_file = {certificate}
key_file = {key}
"""

_ATTEST = """\
[DEFAULT]
use_stderr = true
[api]
bind_host = 127.0.0.1
bind_port = {port}
certificate_file = {certificate}
key_file = {key}
[authority]
issuer = {ATTEST}
state_dir = {folder}
[database]
connection = sqlite:///{folder}/attest.sqlite
[enrolment]
ek_ca_dir = {folder}/ek-ca
listener_networks = 127.0.0.0/8
[listener_client]
certificate_file = {client_certificate}
key_file = {client_key}
ca_file = {ca}
[trust]
max_age = 3
"""

_AGENT = """\
[DEFAULT]
use_stderr = true
[agent]
host = {host}
instances_path = {instances}
volume_dirs = {volumes}
state_dir = /var/lib/mystery-hill/agent
tcti = {tcti}
event_log = /var/lib/mystery-hill/eventlog
kms_origins = {origins}
kms_ca_file = /etc/mystery-hill/ca.pem
attest_url = {ATTEST}
attest_ca_file = /etc/mystery-hill/ca.pem
measurers = {measurers}
live_migration = true
[migration]
tls_dir = /run/mystery-hill/migration
authority_jwk_file = /etc/mystery-hill/attest.jwk
[listener]
bind_host = {address}
bind_port = {port}
cert_file = /etc/mystery-hill/listener.pem
key_file = /etc/mystery-hill/listener.key
client_ca_file = /etc/mystery-hill/ca.pem
client_sha256 = {client_sha256}
"""

_NOVA = """\
[DEFAULT]
allow_resize_to_same_host = true
[filter_scheduler]
available_filters = mh_scheduler.filters.all_filters
enabled_filters = {filters}
[mh_scheduler]
attestation_url = {ATTEST}
ca_file = {ca}
token_file = {folder}/scheduler.token
ttl = 3
"""

#: The cloud's own list, and ours as the last.
FILTERS = (
    "ComputeFilter",
    "ComputeCapabilitiesFilter",
    "ImagePropertiesFilter",
    "TrustedFilter",
)

_QEMU = """\
migrate_tls_x509_cert_dir = "/run/mystery-hill/migration"
migrate_tls_x509_verify = 1
migrate_tls_force = 1
"""

# what doc/source/install/compute.rst has an operator install
_LIBVIRT_HOOK = """\
#!/bin/sh
[ "$2" = migrate ] || exit 0
exec {program} "$@"
"""

_CLIENT = """\
[kms]
url = "{KMS}"
ca_file = "{ca}"
transport_thumbprint = "{transport}"
token_file = "kms.token"
[attest]
url = "{ATTEST}"
ca_file = "{ca}"
token_file = "attest.token"
issuer = "{ATTEST}"
jwk_thumbprint = "{jwk}"
enroller_sha256 = "{enroller}"
[signing]
key_file = "signing.jwk"
"""


class TrustedCloud:
    """Starts the product on a minicloud; commands as a person would type.

    :param cloud: not started yet.
    """

    #: On the operator's list all the same, so that the address is judged.
    LINK_LOCAL = "https://169.254.169.254"

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.base = cloud.base
        self.mh = self.base / "mh"
        self.operator = self.base / "operator"
        self.workstation = self.base / "workstation"
        self.stranger = self.base / "stranger"
        self.origins = [KMS_ORIGIN, PROXY_ORIGIN, self.LINK_LOCAL]
        self._leaves: dict[str, Leaf] = {}

    # -- the whole

    def start(self) -> None:
        """Cloud, then the product, then the computes; state afresh."""
        self.reset()
        self._certificates()
        names = {"ATTEST": ATTEST_ORIGIN, "ca": self.ca}
        self.cloud.extra["nova.conf"] = _NOVA.format(
            **names,
            folder=self.mh / "scheduler",
            filters=",".join(FILTERS),
        )
        # how soon a host's trait follows its state, seconds
        self.cloud.extra["nova-compute.conf"] = (
            "[DEFAULT]\nupdate_resources_interval = 4\n"
            "[libvirt]\nlive_migration_with_native_tls = true\n"
        )
        for node in self.cloud.machines:
            node.options.command = ["mh-nova-compute"]
            node.options.driver = "mh.TrustedLibvirtDriver"
            node.options.qemu_conf = _QEMU
            node.options.libvirt_hook = _LIBVIRT_HOOK.format(
                program=self.cloud.where.bin / "mh-libvirt-hook"
            )
        self.cloud.before_computes = lambda _cloud: self._services()
        self.cloud.start()
        self._enable()
        self.cloud.purge()

    def _enable(self) -> None:
        """Whatever a run that was broken off left disabled."""
        admin = self.cloud.connect("admin")
        for service in admin.compute.services(binary="nova-compute"):
            if service.status != "enabled":
                admin.compute.enable_service(service.id)
        admin.close()

    def stop(self) -> None:
        self.cloud.stop()

    def reset(self) -> None:
        """Forget keys, hosts and the workstation of the last run."""
        for name in ("mh-kms", "mh-attest", "mh-liar", "mh-proxy"):
            self.cloud.end(name)
        for node in self.cloud.machines:
            node.end("mh-agent")
            for place in ("etc/mystery-hill", "var/lib/mystery-hill/agent"):
                shutil.rmtree(node.folder / place, ignore_errors=True)
                (node.folder / place).mkdir(parents=True)
        for folder in (
            self.mh,
            self.operator,
            self.workstation,
            self.stranger,
        ):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)

    @property
    def ca(self) -> pathlib.Path:
        return self.mh / "tls" / "ca.pem"

    def leaf(self, name: str) -> Leaf:
        return self._leaves[name]

    def _certificates(self) -> None:
        authority = Authority(self.mh / "tls")
        for name, address in (
            ("kms", "127.0.0.1"),
            ("attest", "127.0.0.1"),
            ("attest-client", "127.0.0.1"),
            ("proxy", "127.0.0.1"),
            ("liar", "127.0.0.1"),
            ("node1", "127.0.0.11"),
            ("node2", "127.0.0.12"),
            ("node3", "127.0.0.13"),
        ):
            self._leaves[name] = authority.issue(name, [address])

    # -- servers

    def _services(self) -> None:
        self._make_attest()
        self._make_kms()
        self.start_attest()
        self.start_kms()
        self._make_clients()
        for node in self.cloud.nodes:
            self.make_agent(node)
            self.start_agent(node)

    def manage(self, tool: str, *words: str | os.PathLike[str]) -> str:
        """Run ``mh-kms-manage`` or ``mh-attest-manage``; its output."""
        name = tool.removesuffix("-manage")
        argv = [
            str(self.cloud.where.bin / tool),
            "--config-file",
            str(self.mh / name.removeprefix("mh-") / f"{name}.conf"),
            *map(str, words),
        ]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise CloudError(f"{tool} {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def _make_attest(self) -> None:
        folder = self.mh / "attest"
        (folder / "ek-ca").mkdir(parents=True)
        folder.chmod(0o700)
        maker = self.cloud.node1.tpm.authority
        shutil.copy(maker.root, folder / "ek-ca" / "root.pem")
        shutil.copy(maker.certificate, folder / "ek-ca" / "issuer.pem")
        server, client = self.leaf("attest"), self.leaf("attest-client")
        (folder / "mh-attest.conf").write_text(
            _ATTEST.format(
                ATTEST=ATTEST_ORIGIN,
                folder=folder,
                port=ATTEST_PORT,
                certificate=server.certificate,
                key=server.key,
                client_certificate=client.certificate,
                client_key=client.key,
                ca=self.ca,
            )
        )
        self.manage("mh-attest-manage", "db", "sync")

    def _make_kms(self) -> None:
        folder = self.mh / "kms"
        folder.mkdir(mode=0o700)
        server = self.leaf("kms")
        (folder / "mh-kms.conf").write_text(
            _KMS.format(
                KMS=KMS_ORIGIN,
                PROXY=PROXY_ORIGIN,
                ATTEST=ATTEST_ORIGIN,
                LIAR=LIAR_ORIGIN,
                folder=folder,
                port=KMS_PORT,
                certificate=server.certificate,
                key=server.key,
                ca=self.ca,
            )
        )
        self.manage("mh-kms-manage", "db", "sync")
        self.attest_token("kms", "relying", folder / "attest.token")
        scheduler = self.mh / "scheduler"
        scheduler.mkdir(mode=0o700)
        self.attest_token("scheduler", "reader", scheduler / "scheduler.token")

    def attest_token(self, name: str, roles: str, out: pathlib.Path) -> None:
        self.manage(
            *("mh-attest-manage", "token", "create", "--name", name),
            *("--roles", roles, "--out", out),
        )

    def start_attest(self) -> None:
        self.cloud.run(
            "mh-attest",
            [
                "mh-attest-serve",
                "--config-file",
                self.mh / "attest" / "mh-attest.conf",
            ],
            ready=lambda: port_open(ATTEST_PORT),
        )

    def start_kms(self) -> None:
        self.cloud.run(
            "mh-kms",
            ["mh-kms-serve", "--config-file", self.mh / "kms/mh-kms.conf"],
            ready=lambda: port_open(KMS_PORT),
        )

    def stop_attest(self) -> None:
        self.cloud.end("mh-attest")

    def stop_kms(self) -> None:
        self.cloud.end("mh-kms")

    # -- hosts

    def make_agent(self, node: Node, tcti: str = "") -> None:
        """Write one node's agent configuration.

        :param tcti: how to reach its TPM, where not directly.
        """
        etc = node.folder / "etc/mystery-hill"
        server = self.leaf(node.name)
        shutil.copy(self.ca, etc / "ca.pem")
        shutil.copy(server.certificate, etc / "listener.pem")
        shutil.copy(server.key, etc / "listener.key")
        identity = json.loads(
            self.manage("mh-attest-manage", "identity", "show")
        )
        (etc / "attest.jwk").write_text(json.dumps(identity["jwk"]))
        (node.folder / "var/lib/mystery-hill/agent").chmod(0o700)
        (etc / "mh-agent.conf").write_text(
            _AGENT.format(
                ATTEST=ATTEST_ORIGIN,
                host=node.name,
                instances=self.cloud.where.instances,
                volumes=self.cloud.where.state / "volumes",
                tcti=tcti or node.tpm.tcti,
                origins=",".join(self.origins),
                address=node.address,
                port=LISTENER_PORT,
                client_sha256=self.leaf("attest-client").sha256,
                # every one that is installed
                measurers=",".join(
                    sorted(entry_points(group="mh_nova.measurers").names)
                ),
            )
        )

    def start_agent(self, node: Node, module: str | None = None) -> None:
        """``module``: a variant of ours, run instead of ``mh-agent``."""
        conf = node.folder / "etc/mystery-hill/mh-agent.conf"
        program = ["python", "-m", module] if module else ["mh-agent"]
        node.run(
            "mh-agent",
            [*program, "--config-file", "/etc/mystery-hill/mh-agent.conf"],
            SOURCES,
            inputs=[conf],
            ready=(node.folder / "run/mystery-hill/agent.sock").exists,
        )

    def stop_agent(self, node: Node) -> None:
        node.end("mh-agent")

    # -- people

    def _make_clients(self) -> None:
        transport = json.loads(
            self.manage("mh-kms-manage", "transport-key", "show")
        )
        identity = json.loads(
            self.manage("mh-attest-manage", "identity", "show")
        )
        people = (
            (self.operator, None, "operator,reader"),
            (self.workstation, "tenant", "reader"),
            (self.stranger, "other", "reader"),
        )
        for folder, user, roles in people:
            (folder / "client.toml").write_text(
                _CLIENT.format(
                    KMS=KMS_ORIGIN,
                    ATTEST=ATTEST_ORIGIN,
                    ca=self.ca,
                    transport=transport["thumbprint"],
                    jwk=identity["thumbprint"],
                    enroller=identity["enroller_sha256"],
                )
            )
            self.attest_token(folder.name, roles, folder / "attest.token")
            if user is None:
                (folder / "kms.token").touch(0o600)
                continue
            project = self.cloud.connect(user).current_project_id
            self.manage(
                *("mh-kms-manage", "token", "create", "--name", user),
                *("--project", project, "--roles", "owner"),
                *("--out", folder / "kms.token"),
            )

    def environment(self, user: str) -> dict[str, str]:
        """What one sources to type ``openstack`` as this person."""
        folder = {
            "admin": self.operator,
            "tenant": self.workstation,
            "other": self.stranger,
        }[user]
        return {
            **self.cloud.env(user),
            "OS_TRUSTED_CONFIG": str(folder / "client.toml"),
        }

    def openstack(
        self,
        user: str,
        *words: str | os.PathLike[str],
        check: bool = True,
        timeout: float = 240,
        hear: heard.Heard | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Type ``openstack <words>`` as somebody; see :func:`heard.run`."""
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.base / "home"),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.cloud.where.tmp),
            **self.environment(user),
        }
        argv = [str(self.cloud.where.bin / "openstack"), *map(str, words)]
        done = heard.run(argv, env, timeout, hear)
        if check and done.returncode:
            raise CloudError(
                f"openstack {' '.join(map(str, words[:3]))}: "
                + done.stderr.strip()[-1500:]
            )
        return done

    def answer(self, user: str, *words: str | os.PathLike[str]) -> typing.Any:
        """The same with ``-f json``, parsed."""
        return json.loads(self.openstack(user, *words, "-f", "json").stdout)

    def enrol(self, node: Node) -> typing.Any:
        """What an operator does with a new host."""
        return self.answer(
            "admin",
            *("trusted", "host", "enrol", node.name),
            *("--listener", f"https://{node.address}:{LISTENER_PORT}"),
            *("--listener-sha256", self.leaf(node.name).sha256),
            *("--ek-certificate", node.tpm.ek_certificate),
            "--learn-policy",
        )

    def second_host(self) -> Node:
        """Start the third host and enrol it, once: the second trusted one."""
        node = self.cloud.node3
        if node.runs("nova-compute"):
            return node

        def agent() -> None:
            self.make_agent(node)
            self.start_agent(node)

        self.cloud.start_third(agent)
        host = self.enrol(node)
        if host["level"] != "trusted":
            raise CloudError(f"{node.name} is {host['level']}")
        return node


def wait_for(
    what: str,
    test: collections.abc.Callable[[], typing.Any],
    timeout: float = 60,
    pause: float = 0.3,
) -> typing.Any:
    """Poll until ``test`` is true; what it returned."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = test()
        if found:
            return found
        time.sleep(pause)
    raise CloudError(f"{what}: not after {timeout:.0f} s")

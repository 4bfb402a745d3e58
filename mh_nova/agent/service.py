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
"""Puts the agent's parts together; nothing is decided here."""

import os
import uuid
from pathlib import Path
from typing import Any

from stevedore import named

from mh_core.errors import InputError
from mh_nova.agent import stream_server
from mh_nova.agent.bases import Bases
from mh_nova.agent.guard import Guard
from mh_nova.agent.guests import Guests
from mh_nova.agent.interfaces import Prover
from mh_nova.agent.journal import Journal
from mh_nova.agent.kms import KmsClient, PendingRequests
from mh_nova.agent.launch import Launcher
from mh_nova.agent.lease import Leases
from mh_nova.agent.lease_client import LeaseClient
from mh_nova.agent.lease_store import LeaseStore
from mh_nova.agent.measurers.base import Measurer
from mh_nova.agent.migration_tls import MigrationTls
from mh_nova.agent.ours import Ours
from mh_nova.agent.overlay import Overlays
from mh_nova.agent.parts import Parts
from mh_nova.agent.paths import Root
from mh_nova.agent.protect import Protection
from mh_nova.agent.receipts import Receipts, disks_there
from mh_nova.agent.report import Reporter
from mh_nova.agent.secrets import Libvirt, Secrets
from mh_nova.agent.server import Server
from mh_nova.agent.store import Store, write_atomic
from mh_nova.agent.verbs import Context, dispatch

NAMESPACE = "mh_nova.measurers"


def host_id(conf: Any, store: Store) -> str:
    """The host's uuid: the operator's, or one made once.

    :raises InputError: ``agent.conf.host-id``.
    """
    text = conf.agent.host_id
    path = store.root / "host-id"
    if not text:
        if not path.exists():
            write_atomic(path, str(uuid.uuid4()).encode())
        text = path.read_text().strip()
    try:
        if str(uuid.UUID(text)) != text:
            raise ValueError
    except ValueError as exc:
        raise InputError("agent.conf.host-id", "not a uuid") from exc
    return str(text)


def load_measurers(names: list[str]) -> dict[str, Measurer]:
    """By explicit name; one that does not load stops the agent.

    :raises InputError: ``agent.conf.measurers``.
    """

    def failed(_manager: Any, entry_point: Any, _error: Any) -> None:
        raise InputError(
            "agent.conf.measurers", f"{entry_point.name} does not load"
        )

    manager = named.NamedExtensionManager(
        NAMESPACE,
        list(names),
        invoke_on_load=True,
        name_order=True,
        on_load_failure_callback=failed,
        on_missing_entrypoints_callback=lambda _names: None,
    )
    found: dict[str, Measurer] = {one.name: one.obj for one in manager}
    missing = [
        name for name in names if not isinstance(found.get(name), Measurer)
    ]
    if missing or not found:
        raise InputError(
            "agent.conf.measurers", f"no measurer {', '.join(missing)}"
        )
    return found


def _configured(conf: Any, journal: Journal) -> dict[str, Measurer]:
    measurers = load_measurers(conf.measurers)
    for name, measurer in measurers.items():
        facts = measurer.configure(conf)
        if facts:
            journal.write(
                f"agent.measurer.{name}.identity",
                "",
                " ".join(f"{key}={facts[key]}" for key in sorted(facts)),
            )
    return measurers


class Service:
    """The launch side, ready to run.

    :param conf: parsed configuration, see ``conf.py``.
    """

    def __init__(self, conf: Any, prover: Prover, store: Store) -> None:
        root = Root(conf.agent.instances_path)
        state = Path(conf.agent.state_dir)
        self.pending = PendingRequests()
        self.journal = Journal(state / "audit.log")
        self._libvirt = Libvirt(conf.agent.libvirt_uri)
        self._secrets = Secrets(self._libvirt, conf.agent.secret_lease)
        self._reporter = Reporter(conf, prover, self.journal)
        guard = Guard(conf, prover)
        self.migration = MigrationTls(conf, prover)
        kms = KmsClient(conf, prover, self.pending)
        leases = LeaseStore(state)
        self._leases = Leases(
            leases,
            Guests(self._libvirt, conf.agent.libvirt_run_dir),
            self.journal,
            asker=LeaseClient(kms),
        )
        self._receipts = Receipts(
            leases, LeaseClient(kms), self.journal, disks_there(root, store)
        )
        parts = Parts(
            conf=conf,
            root=root,
            prover=prover,
            kms=kms,
            store=store,
            bases=Bases(
                root,
                store,
                conf.agent.believe_base_records,
                Protection(
                    conf.agent.fs_verity, Path(conf.agent.socket).parent
                ),
            ),
            overlays=Overlays(conf, root),
            secrets=self._secrets,
            journal=self.journal,
            guard=guard,
            reporter=self._reporter,
            measurers=_configured(conf.agent, self.journal),
            libvirt=self._libvirt,
            migration=self.migration,
            leases=self._leases,
            receipts=self._receipts,
            handover=self._leases,
        )
        self.launcher = Launcher(parts)
        self._streams = stream_server.build(parts)
        context = Context(
            self.launcher, guard, Ours(root, store, self._libvirt)
        )
        self._server = Server(
            conf.agent.socket,
            conf.agent.socket_group,
            conf.agent.allowed_uids,
            lambda request: dispatch(context, request),
        )

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        self._secrets.sweep()
        self._secrets.start()
        self._reporter.start()
        self.migration.start()
        self._leases.start()
        self._receipts.start()
        self.launcher.start_threads()
        if self._streams is not None:
            self._streams.start()
        self.journal.write("agent.started", "", durable=False, pid=os.getpid())
        self._server.serve()

    def stop(self) -> None:
        """Stop serving; no secret stays in libvirt."""
        self._server.stop()
        if self._streams is not None:
            self._streams.stop()
        self.launcher.stop()
        self._reporter.stop()
        self.migration.stop()
        self._leases.stop()
        self._receipts.stop()
        self._secrets.stop()

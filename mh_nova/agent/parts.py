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
"""What a launcher is put together from."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mh_nova.agent.bases import Bases
from mh_nova.agent.guard import Guard
from mh_nova.agent.interfaces import Handover, Prover
from mh_nova.agent.journal import Journal
from mh_nova.agent.kms import KmsClient
from mh_nova.agent.lease import Leases
from mh_nova.agent.measurers.base import Measurer
from mh_nova.agent.migration_tls import MigrationTls
from mh_nova.agent.overlay import Overlays
from mh_nova.agent.paths import Root
from mh_nova.agent.receipts import Receipts
from mh_nova.agent.report import Reporter
from mh_nova.agent.secrets import Keeper, Libvirt
from mh_nova.agent.store import Store


@dataclass(frozen=True)
class Parts:
    """What a launcher is put together from."""

    conf: Any
    root: Root
    prover: Prover
    kms: KmsClient
    store: Store
    bases: Bases
    overlays: Overlays
    secrets: Keeper
    journal: Journal
    guard: Guard
    reporter: Reporter
    measurers: Mapping[str, Measurer]
    leases: Leases
    receipts: Receipts
    clock: Callable[[], float] = time.time
    #: None: nothing that needs a running guest is possible.
    libvirt: Libvirt | None = None
    #: None: no guest can be moved while it runs.
    migration: MigrationTls | None = None
    #: None: guests have no lease here.
    handover: Handover | None = None

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

"""What the key server is made of, put together once by ``deploy``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mh_kms.access import Access
from mh_kms.attestors.base import Attestor
from mh_kms.db.connection import Database
from mh_kms.key_stores.base import KeyStore
from mh_kms.ledger import Ledger
from mh_kms.policy_checks.base import PolicyCheck
from mh_kms.transport import TransportKey


@dataclass(frozen=True)
class Parts:
    """
    :param origin: this server's own name of itself.
    :param origins: under which a request may name it, its own among them.
    :param clock: seconds since the epoch.
    :param random: that many random bytes.
    """

    origin: str
    origins: frozenset[str]
    database: Database
    ledger: Ledger
    key_store: KeyStore
    transport: TransportKey
    attestor: Attestor
    checks: Mapping[str, PolicyCheck]
    access: Access
    clock: Callable[[], float]
    random: Callable[[int], bytes]

    def now(self) -> int:
        return int(self.clock())

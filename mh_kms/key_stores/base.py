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

"""What a key store is."""

import abc

from oslo_config import cfg

from mh_core.secret import Secret

#: Roles of a sealed secret; each is sealed for its own use only.
DEK, OVERLAY_ROOT, TRANSPORT = "dek", "overlay-root", "transport"


class KeyStore(abc.ABC):
    """Seals secrets, so that what the database holds is worth nothing.

    Security contract:

    * what :meth:`seal` returns shows nothing about the secret but its
      length, and differs each time;
    * :meth:`open` returns exactly what was sealed under the same key id
      *and* the same role, or raises; it authenticates, so bytes that were
      changed, or moved to another key or role, are refused;
    * nothing secret is in an exception, a log or ``repr``;
    * safe to use from several threads; no state that a fork would break;
    * it never makes a new key of its own outside :meth:`prepare`.
    """

    @abc.abstractmethod
    def __init__(self, conf: cfg.ConfigOpts) -> None: ...

    @abc.abstractmethod
    def prepare(self, empty: bool) -> None:
        """Make what the driver needs, at ``mh-kms-manage db sync``.

        :param empty: nothing was ever sealed; only then may a missing
            key-encryption key be made.
        :raises Unavailable: ``kms.key-store.*``.
        """

    @abc.abstractmethod
    def seal(self, key_id: str, role: str, secret: Secret) -> bytes:
        """:raises Unavailable: ``kms.key-store.*``."""

    @abc.abstractmethod
    def open(self, key_id: str, role: str, sealed: bytes) -> Secret:
        """:raises VerificationError: ``kms.key-store.sealed``.
        :raises Unavailable: ``kms.key-store.*``."""

    @abc.abstractmethod
    def destroy(self, key_id: str, role: str, sealed: bytes) -> None:
        """Forget a secret for good, beyond the database row's deletion.

        :raises Unavailable: ``kms.key-store.*``.
        """

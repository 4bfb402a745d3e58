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
"""Keys of a tenant: made here, kept by the key server, written nowhere."""

import secrets
from collections.abc import Callable
from typing import Any

from mh_client import signing
from mh_client.attest import Attest
from mh_client.config import Config
from mh_client.kms import Key, Kms
from mh_client.release_policy import Changes, Rules
from mh_core.secret import Secret

KEY_SIZE = 32


class Keys:
    """
    :param notice: takes a sentence for the person at the terminal.
    """

    def __init__(
        self,
        config: Config,
        kms: Kms,
        attest: Callable[[], Attest],
        notice: Callable[[str], None],
    ) -> None:
        self._config = config
        self._kms = kms
        self._attest = attest
        self._notice = notice

    def create(self, name: str, rules: Rules) -> Key:
        """Make a key and give it to the key server.

        1. the rules make sense;
        2. the key server has the pinned transport key;
        3. the authority and the enroller are the pinned ones;
        4. the release policy names exactly those;
        5. the key is drawn, wrapped, sent, and forgotten.

        :raises MHError: ``client.kms.*``, ``client.attest.*``,
            ``client.config.*``, or what the key server answers.
        """
        # 1
        rules.check()
        # 2
        self._kms.transport_key()
        # 3
        authority = self._attest().authority()
        # 4
        own = signing.load_or_create(
            self._config.signing_key_file, self._notice
        )
        policy = rules.to_policy(authority, own)
        # 5
        dek = Secret(secrets.token_bytes(KEY_SIZE))
        return self._kms.create_key(name, dek, policy)

    def all(self) -> tuple[Key, ...]:
        return self._kms.keys()

    def find(self, name: str) -> Key:
        """By id or unique name."""
        return self._kms.find(name)

    def change(self, name: str, changes: Changes) -> Key:
        """Read the policy, change it, write it back."""
        key = self._kms.find(name)
        return self._kms.set_policy(key.id, changes.apply(key.policy))

    def delete(self, name: str) -> Key:
        """Destroy a key, its overlay root, and so every instance's disks."""
        key = self._kms.find(name)
        self._kms.delete(key.id)
        return key

    def audit(self, name: str, after: int = 0) -> list[dict[str, Any]]:
        return self._kms.audit(self._kms.find(name).id, after)

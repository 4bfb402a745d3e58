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
"""Launch policy: what the tenant allows a domain to be; deny by default."""

from dataclasses import dataclass
from typing import Any

from mh_core.encoding import canonical_json, labelled_digest
from mh_core.fields import DIGEST, Fields, text_item

EVENT = "core.launch-policy"


@dataclass(frozen=True)
class LaunchPolicy:
    """Travels in the manifest and in the key release.

    :param config_drives: SHA-256 (hex) of each config drive image that may
        be attached; none by default.
    :param user_data: SHA-256 (hex) of each user-data that may be given;
        none given is always allowed.
    :param snapshots: the instance may be snapshotted under a new key.
    """

    config_drives: tuple[str, ...] = ()
    user_data: tuple[str, ...] = ()
    snapshots: bool = False

    @classmethod
    def parse(cls, value: Any) -> "LaunchPolicy":
        """:raises InputError: ``core.launch-policy``."""
        fields = Fields(value, EVENT)
        item = text_item(EVENT, 64, DIGEST)
        policy = cls(
            config_drives=fields.list("config_drives", item, 64, ()),
            user_data=fields.list("user_data", item, 64, ()),
            snapshots=fields.boolean("snapshots", False),
        )
        fields.end()
        return policy

    def to_dict(self) -> dict[str, Any]:
        return {
            "config_drives": list(self.config_drives),
            "user_data": list(self.user_data),
            "snapshots": self.snapshots,
        }

    def digest(self) -> str:
        """Hex SHA-256, bound into launch tickets."""
        return labelled_digest(
            "mh/launch-policy/v1", [canonical_json(self.to_dict())]
        ).hex()

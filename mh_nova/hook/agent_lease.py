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
"""What the agent answers about leases."""

from dataclasses import dataclass

from mh_core.fields import Fields


@dataclass(frozen=True)
class Lease:
    """
    :param lease: id; empty where the agent knows of none.
    :param ends_in: seconds, -1 for never.
    :param stopped: why the agent stopped the guest, or empty.
    """

    lease: str
    ends_in: int
    stopped: str


def lease(fields: Fields) -> Lease:
    """:raises InputError: ``hook.agent.answer``."""
    return Lease(
        fields.text("lease", maximum=80),
        fields.integer("ends_in", -1, 1 << 40),
        fields.text("stopped", maximum=512),
    )

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
"""What the model does to an instance, and where it may lead."""

from __future__ import annotations

import dataclasses
import typing

#: In which an instance may be at rest.
STATES = frozenset(
    {
        "ACTIVE",
        "SHUTOFF",
        "PAUSED",
        "SUSPENDED",
        "RESCUE",
        "VERIFY_RESIZE",
        "SHELVED",
        "SHELVED_OFFLOADED",
    }
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """
    :param before: states in which it is done.
    :param after: states that it may lead to.
    :param admin: only the operator may ask for it.
    """

    name: str
    before: frozenset[str]
    after: frozenset[str]
    body: dict[str, typing.Any]
    admin: bool = False


def _operation(
    name: str,
    before: str,
    after: str,
    body: dict[str, typing.Any],
    admin: bool = False,
) -> Operation:
    return Operation(
        name, frozenset(before.split()), frozenset(after.split()), body, admin
    )


OPERATIONS = (
    _operation("stop", "ACTIVE", "SHUTOFF", {"os-stop": None}),
    _operation("start", "SHUTOFF", "ACTIVE", {"os-start": None}),
    _operation(
        "soft reboot", "ACTIVE", "ACTIVE", {"reboot": {"type": "SOFT"}}
    ),
    _operation(
        "hard reboot",
        "ACTIVE SHUTOFF PAUSED",
        "ACTIVE",
        {"reboot": {"type": "HARD"}},
    ),
    _operation("pause", "ACTIVE", "PAUSED", {"pause": None}),
    _operation("unpause", "PAUSED", "ACTIVE", {"unpause": None}),
    _operation("suspend", "ACTIVE", "SUSPENDED", {"suspend": None}),
    _operation("resume", "SUSPENDED", "ACTIVE", {"resume": None}),
    _operation("rescue", "ACTIVE", "RESCUE", {"rescue": {}}),
    _operation("unrescue", "RESCUE", "ACTIVE", {"unrescue": None}),
    _operation("rebuild", "ACTIVE SHUTOFF", "ACTIVE SHUTOFF", {"rebuild": {}}),
    _operation(
        "snapshot",
        "ACTIVE SHUTOFF PAUSED",
        "ACTIVE SHUTOFF PAUSED",
        {"createImage": {"name": "model"}},
    ),
    _operation(
        "shelve",
        "ACTIVE SHUTOFF PAUSED",
        "SHELVED SHELVED_OFFLOADED",
        {"shelve": None},
    ),
    _operation(
        "unshelve",
        "SHELVED SHELVED_OFFLOADED",
        "ACTIVE SHUTOFF",
        {"unshelve": None},
    ),
    _operation("resize", "ACTIVE SHUTOFF", "VERIFY_RESIZE", {"resize": {}}),
    _operation(
        "migrate",
        "ACTIVE SHUTOFF",
        "VERIFY_RESIZE",
        {"migrate": None},
        admin=True,
    ),
    _operation(
        "confirm",
        "VERIFY_RESIZE",
        "ACTIVE SHUTOFF",
        {"confirmResize": None},
    ),
    _operation(
        "revert", "VERIFY_RESIZE", "ACTIVE SHUTOFF", {"revertResize": None}
    ),
    _operation(
        "live migration",
        "ACTIVE PAUSED",
        "ACTIVE PAUSED",
        {"os-migrateLive": {"host": None, "block_migration": "auto"}},
        admin=True,
    ),
)

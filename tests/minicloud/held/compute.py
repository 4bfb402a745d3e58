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
"""mh-nova-compute; its steps are the ends of methods of its driver, as
``hook.<method>``, or with ``.begin`` their begin."""

from __future__ import annotations

import functools
import sys
import typing

from tests.minicloud import held

METHODS = (
    "check_can_live_migrate_source",
    "live_migration",
    "pre_live_migration",
    "post_live_migration_at_destination",
    "post_live_migration_at_source",
    "rollback_live_migration_at_destination",
)


def _wrap(owner: typing.Any, name: str) -> None:
    method = getattr(owner, name)

    @functools.wraps(method)
    def noted(*words: typing.Any, **more: typing.Any) -> typing.Any:
        held.at(f"hook.{name}.begin")
        found = method(*words, **more)
        held.at(f"hook.{name}")
        return found

    setattr(owner, name, noted)


def _patch() -> None:
    import nova.cmd.compute  # chooses the threading model: the first

    from mh_nova.hook.departure import Departure
    from mh_nova.hook.driver import TrustedLibvirtDriver

    assert nova.cmd.compute
    for name in METHODS:
        _wrap(TrustedLibvirtDriver, name)
    _wrap(Departure, "post")


def main() -> int:
    _patch()
    from mh_nova.cmd import compute

    return compute.main() or 0


if __name__ == "__main__":
    sys.exit(main())

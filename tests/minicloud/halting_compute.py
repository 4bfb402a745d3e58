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

"""Runs ``mh-nova-compute`` with its steps named; see
``tests.fixture.halting``."""

from __future__ import annotations

import collections.abc
import sys
import typing

from tests.fixture.halting import Stops, from_environment
from tests.minicloud import patched

#: Of a live migration, by nova's names.
LIVE = (
    "check_can_live_migrate_destination",
    "check_can_live_migrate_source",
    "live_migration",
    "pre_live_migration",
    "post_live_migration_at_destination",
    "post_live_migration_at_source",
    "rollback_live_migration_at_destination",
)
#: Verbs asked at any time, by nobody's operation.
_QUIET = ("status", "ours", "lease", "abandoned", "sweep", "disks", "copy")


def _asked(_self: typing.Any, verb: str, *_rest: typing.Any) -> str | None:
    return None if verb in _QUIET else f"ask {verb}"


def _answered(_self: typing.Any, verb: str, *_rest: typing.Any) -> str | None:
    return None if verb in _QUIET else f"{verb} answered"


class _Chunks:
    """An image's data; after its first part nova stops, if it is to."""

    def __init__(self, stops: Stops, chunks: typing.Any) -> None:
        self._stops = stops
        self._chunks = chunks
        self.wrapped = chunks.wrapped

    def __iter__(self) -> collections.abc.Iterator[bytes]:
        first = True
        for chunk in self._chunks:
            yield chunk
            if first:
                self._stops.at("download under way")
            first = False


def name_steps(stops: Stops) -> None:
    from nova.virt.libvirt import utils as libvirt_utils
    from nova.virt.libvirt.driver import LibvirtDriver
    from nova.virt.libvirt.guest import Guest

    from mh_nova.hook import download
    from mh_nova.hook.agent_client import AgentClient
    from mh_nova.hook.departure import Departure
    from mh_nova.hook.driver import TrustedLibvirtDriver
    from mh_nova.hook.launch import Launcher
    from mh_nova.hook.operations.snapshot import Snapshot

    of_driver = (
        ("spawn", "spawn"),
        ("snapshot", "snapshot"),
        ("migrate_disk_and_power_off", "leave"),
        ("finish_migration", "arrive"),
        ("finish_revert_migration", "come back"),
        ("confirm_migration", "confirm"),
        ("destroy", "destroy"),
        *((name, name) for name in LIVE),
    )
    for owner, method, operation in (
        *((TrustedLibvirtDriver, *names) for names in of_driver),
        (Departure, "post", "post_live_migration"),
    ):
        stops.wrap(
            owner,
            method,
            before="begin",
            after="end",
            inside=lambda *_rest, name=operation: name,
        )
    stops.wrap(AgentClient, "_ask", before=_asked, after=_answered)
    stops.wrap(Launcher, "download", before="download", after="downloaded")
    stops.wrap(LibvirtDriver, "_create_image", after="disks made")
    stops.wrap(LibvirtDriver, "power_off", before="stop", after="stopped")
    stops.wrap(libvirt_utils, "copy_image", before="copy", after="copied")
    stops.wrap(Guest, "launch", before="launch", after="launched")
    stops.wrap(Snapshot, "_mh_store", before="store", after="stored")
    ask = download.Unhashed.call

    def call(self: typing.Any, *args: typing.Any, **kw: typing.Any) -> object:
        return _Chunks(stops, ask(self, *args, **kw))

    download.Unhashed.call = call  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(patched.run(lambda: name_steps(from_environment())))

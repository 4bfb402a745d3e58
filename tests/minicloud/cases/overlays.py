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
"""The overlay's headers edited on the node while the guest is off."""

from __future__ import annotations

import collections.abc
import functools
import pathlib

from tests.minicloud.foul import qcow2
from tests.minicloud.refusals import Case, Seen, refusal
from tests.minicloud.world import TrustedImage, World

Edit = collections.abc.Callable[
    [pathlib.Path], collections.abc.Callable[[], None]
]


def _edited(edit: Edit) -> Case:
    def case(world: World, image: TrustedImage) -> Seen:
        server = world.stopped(image)
        disk = world.node1.folder / "instances" / server.id / "disk"
        undo = edit(disk)
        try:
            yield world.refused_start(server)
        finally:
            undo()
        world.starts(server, image)

    return case


for _name, _event, _edit in (
    (
        "a data file named in the overlay's header",
        "core.image.qcow2.data-file",
        functools.partial(qcow2.data_file, name="/etc/passwd"),
    ),
    (
        "an internal snapshot in the overlay",
        "core.image.qcow2.snapshots",
        qcow2.snapshot,
    ),
    (
        "another backing file than the verified base",
        "core.image.qcow2.backing",
        functools.partial(qcow2.backing, other="/etc/passwd"),
    ),
    (
        "an overlay that is no longer encrypted",
        "core.image.qcow2.crypt-method",
        qcow2.plain,
    ),
    (
        "a huge iteration count in the LUKS header",
        "core.image.luks.iterations",
        qcow2.iterations,
    ),
    (
        "a compressed cluster with chosen plaintext",
        "core.image.qcow2.compressed",
        functools.partial(qcow2.compressed, contents=b"chosen" * 64),
    ),
):
    refusal(_name, "agent", _event, again=False, clean=False)(_edited(_edit))

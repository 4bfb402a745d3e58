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
"""The product, stopped where a test wants it: with a hand on the switch.

``held.agent`` and ``held.compute`` are mh-agent and mh-nova-compute, which
wait at one named step for as long as ``/run/mystery-hill/hold`` names it;
that they wait they write to ``/run/mystery-hill/held``.
"""

from __future__ import annotations

import collections.abc
import contextlib
import os
import pathlib
import time

from tests.minicloud.node import Node
from tests.minicloud.trusted import wait_for

FOLDER = "/run/mystery-hill"
ORDER, SAID = "hold", "held"


def at(step: str) -> None:
    """Called inside the product, after the step was done."""
    order = pathlib.Path(FOLDER, ORDER)
    said = pathlib.Path(FOLDER, SAID)

    def held() -> bool:
        try:
            return order.read_text() == step
        except FileNotFoundError:
            return False

    while held():
        said.write_text(step)
        time.sleep(0.05)


@contextlib.contextmanager
def holding(
    node: Node, step: str
) -> collections.abc.Iterator[collections.abc.Callable[[], None]]:
    """Hold a node's product at a step; what is yielded waits until it is
    there.  At the end it goes on, if it still runs."""
    order = node.path(f"{FOLDER}/{ORDER}")
    said = node.path(f"{FOLDER}/{SAID}")
    said.unlink(missing_ok=True)
    new = order.with_suffix(".new")
    new.write_text(step)
    os.replace(new, order)
    try:
        yield lambda: wait_for(f"{node.name} at {step}", said.exists, 90, 0.1)
    finally:
        order.unlink()
        said.unlink(missing_ok=True)

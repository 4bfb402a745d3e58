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
"""Domains that the tenant's launch policy does not allow."""

from __future__ import annotations

import typing

from tests.minicloud.refusals import Case, Seen, launch, refusal
from tests.minicloud.world import TrustedImage, World


def _tampered(order: str) -> Case:
    """nova-compute adds something to the domain, by itself."""

    def case(world: World, image: TrustedImage) -> Seen:
        orders = world.node1.folder / "run/mystery-hill/foul"
        orders.write_text(order)
        try:
            yield launch(world, image)
        finally:
            orders.unlink()

    return typing.cast(Case, case)


for _name, _order, _event in (
    (
        "a plain second disk added by the operator",
        "disk",
        "agent.admit.foreign-disk",
    ),
    (
        "a config drive that is not in the launch policy",
        "config-drive",
        "agent.admit.foreign-disk",
    ),
    (
        "an interactive console added by the operator",
        "console",
        "agent.admit.console",
    ),
    (
        "a kernel of the operator's",
        "kernel",
        "agent.admit.direct-boot",
    ),
):
    refusal(_name, "agent", _event, foul=True)(_tampered(_order))

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
"""A guest's UEFI firmware: rows of the allow-list, and its decision.

Variables would decide what boots, and be a plain file of the host's: only
firmware that has none is allowed, from a list of files that the host policy
measures with the rest of the system.  See :mod:`mh_nova.agent.domain_schema`.
"""

from collections.abc import Collection
from typing import Any

from mh_nova.agent.domain_rule import rules

#: nova writes ``secure``, later libvirts ``format``; neither is needed.
_MAY: dict[str, str] = {"secure": "no", "format": "raw"}
_MUST: dict[str, str] = {
    "type": "pflash",
    "readonly": "yes",
    "stateless": "yes",
}

FIRMWARE = rules(("os/loader", _MUST | _MAY, r"/.{1,255}"))


def right(root: Any, firmwares: Collection[str]) -> bool:
    """Has the domain no firmware but the default one, or a listed one?

    :param root: the domain.
    :param firmwares: paths.
    """
    found = root.findall("os/loader")
    # the row allows no other attribute, but would let one be missing
    return not found or (
        len(found) == 1
        and found[0].text in firmwares
        and _MUST.items() <= dict(found[0].attrib).items()
    )

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
"""The leak search of the demo and of the end-to-end tests.

::

    needles = [Needle("marker", marker), *key_needles("DEK", dek, base)]
    search = Search(default_roots(cloud.base), [workstation], needles)
    with plant(folders) as planted:
        search = Search(roots, [workstation], [*needles, *planted.needles])
        hits = search.run()
    assert not planted.missing(hits) and not planted.others(hits)
"""

from tests.minicloud.search.needle import Needle
from tests.minicloud.search.plant import Planted, plant
from tests.minicloud.search.search import (
    Hit,
    Search,
    SearchError,
    default_roots,
    key_needles,
    libvirt_secrets,
    luks_master_keys,
)

__all__ = [
    "Hit",
    "Needle",
    "Planted",
    "Search",
    "SearchError",
    "default_roots",
    "key_needles",
    "libvirt_secrets",
    "luks_master_keys",
    "plant",
]

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
"""nova-compute of an operator who would take any guest, moving or not.

Runs ``mh-nova-compute`` whose checks before a live migration always say yes,
and which makes no disks by the agent: what keeps a guest away from it is the
source's own gate.
"""

from __future__ import annotations

import sys

from tests.minicloud import patched


def _patch() -> None:
    from mh_nova.hook.operations.incoming import Incoming
    from mh_nova.hook.operations.live_migration import LiveMigration

    LiveMigration._mh_can_migrate = (  # type: ignore[method-assign]
        lambda self, instance: False
    )
    # not in nova's class: the hook's look at that would end it
    Incoming._create_images_and_backing = (  # type: ignore[method-assign]
        lambda *args, **kwargs: None
    )


if __name__ == "__main__":
    sys.exit(patched.run(_patch))

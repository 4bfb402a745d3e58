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
"""cinder-scheduler and cinder-volume, imported once and then forked.

    python -m tests.minicloud.volumes.daemons --config-file cinder.conf

What each does is what the programs of these names do.
"""

from __future__ import annotations

# Before anything that it patches.
from cinder import monkey_patch

monkey_patch.patch()

import os  # noqa: E402
import sys  # noqa: E402

import os_brick  # noqa: E402
from cinder import i18n, objects, service, version  # noqa: E402
from cinder.common import config, constants  # noqa: E402, F401
from oslo_config import cfg  # noqa: E402
from oslo_log import log as logging  # noqa: E402

CONF = cfg.CONF


def main() -> None:
    i18n.enable_lazy()
    objects.register_all()
    CONF(sys.argv[1:], project="cinder", version=version.version_string())
    logging.setup(CONF, "cinder")
    os_brick.setup(CONF)
    if os.fork():
        [backend] = CONF.enabled_backends
        server = service.Service.create(
            host=f"{CONF.host}@{backend}",
            service_name=backend,
            binary=constants.VOLUME_BINARY,
            coordination=True,
        )
    else:
        server = service.Service.create(binary=constants.SCHEDULER_BINARY)
    service.serve(server)
    service.wait()


if __name__ == "__main__":
    main()

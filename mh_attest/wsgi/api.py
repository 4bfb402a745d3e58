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
"""``mh_attest.wsgi.api:application`` for uWSGI, granian and others.

The configuration file is named by ``OS_MH_ATTEST_CONFIG_FILE``.
"""

import atexit
import os

from mh_attest import conf as conf_module
from mh_attest import log
from mh_attest.deploy import Application, deploy


def _make() -> Application:
    path = os.environ.get(
        conf_module.CONFIG_FILE_ENV, "/etc/mh-attest/mh-attest.conf"
    )
    conf = conf_module.load([path])
    log.setup(conf)
    made = deploy(conf)
    atexit.register(made.close)
    return made


application = _make()

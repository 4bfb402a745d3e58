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

"""Configuration of the key server; nothing here is global."""

from oslo_config import cfg
from oslo_log import log

from mh_kms.conf import opts


def load(path: str) -> cfg.ConfigOpts:
    """Read one configuration file.

    :raises oslo_config.cfg.Error: the file, or a value in it.
    """
    conf = cfg.ConfigOpts()
    log.register_options(conf)
    opts.register(conf)
    conf(
        ["--config-file", path],
        project="mh-kms",
        default_config_dirs=[],
        validate_default_values=True,
    )
    return conf

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
"""Configuration: every option by its group, on a ConfigOpts passed in."""

from collections.abc import Sequence

from oslo_config import cfg
from oslo_log import log

from mh_attest.conf import (
    api,
    authority,
    database,
    enrolment,
    listener_client,
    migration,
    trust,
)

PROJECT = "mh-attest"
#: Environment variable that names the WSGI application's config file.
CONFIG_FILE_ENV = "OS_MH_ATTEST_CONFIG_FILE"
GROUPS = (
    api,
    authority,
    database,
    enrolment,
    listener_client,
    migration,
    trust,
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    for group in GROUPS:
        group.register_opts(conf)


def load(config_files: Sequence[str]) -> cfg.ConfigOpts:
    """A ConfigOpts of its own, read from these files and nowhere else."""
    conf = cfg.ConfigOpts()
    log.register_options(conf)
    register_opts(conf)
    conf(
        [],
        project=PROJECT,
        default_config_files=list(config_files),
        default_config_dirs=[],
    )
    return conf

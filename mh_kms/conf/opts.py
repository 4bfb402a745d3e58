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

"""Every option, for registration and for the sample generator."""

from typing import Any

from oslo_config import cfg

from mh_kms.conf import authority, database, key_store, kms, server

_MODULES = (kms, database, key_store, authority, server)


def register(conf: cfg.ConfigOpts) -> None:
    for module in _MODULES:
        conf.register_group(module.GROUP)
        conf.register_opts(module.OPTS, group=module.GROUP)


def list_opts() -> list[tuple[Any, list[Any]]]:
    """Entry point ``oslo.config.opts``."""
    return [(module.GROUP, list(module.OPTS)) for module in _MODULES]

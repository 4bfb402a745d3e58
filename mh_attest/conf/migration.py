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
"""``[migration]``: certificates for live migration."""

from typing import Any

from oslo_config import cfg

GROUP = cfg.OptGroup("migration", title="Live migration")
OPTS = [
    cfg.IntOpt(
        "certificate_life",
        default=3600,
        min=20,
        max=86400,
        help="Seconds a host's migration certificate is valid. A host renews "
        "it at half of that, each time with a fresh quote; a shorter life "
        "costs more of those. No migration begins on the certificate alone.",
    ),
    cfg.ListOpt(
        "levels",
        default=["trusted"],
        help="Levels that a host must have, one of them, to get a migration "
        "certificate. 'boot-only' admits hosts whose software is not "
        "measured. Safe value: trusted.",
    ),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> dict[cfg.OptGroup, list[Any]]:
    return {GROUP: OPTS}

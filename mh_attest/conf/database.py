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
"""``[database]``: where hosts, policies, reports and audit are kept."""

from typing import Any

from oslo_config import cfg

GROUP = cfg.OptGroup("database", title="Database")
OPTS = [
    cfg.StrOpt(
        "connection",
        default="sqlite:////var/lib/mystery-hill/attest/attest.sqlite",
        secret=True,
        help="SQLAlchemy URL. SQLite (WAL, one server process) by default.",
    ),
    cfg.IntOpt(
        "busy_timeout",
        default=5,
        min=1,
        max=60,
        help="Seconds to wait for a lock of another process on SQLite.",
    ),
    cfg.IntOpt(
        "vm_reports_kept",
        default=32,
        min=1,
        max=1000,
        help="VM reports kept of each host about each instance, the newest. "
        "32 of an instance are listed.",
    ),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> dict[cfg.OptGroup, list[Any]]:
    return {GROUP: OPTS}

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
"""``[trust]``: how fresh the trust state of a host is."""

from typing import Any

from oslo_config import cfg

GROUP = cfg.OptGroup("trust", title="Trust answers")
OPTS = [
    cfg.IntOpt(
        "max_age",
        default=30,
        min=1,
        max=3600,
        help="Seconds an appraisal of a host answers trust questions. "
        "Longer is cheaper, and finds a changed host later. Key releases "
        "never use it.",
    ),
    cfg.IntOpt(
        "retry_after",
        default=5,
        min=1,
        max=300,
        help="Seconds before a host that did not answer is asked again.",
    ),
    cfg.FloatOpt(
        "timeout",
        default=3.0,
        min=0.1,
        max=30.0,
        help="Seconds one host has to answer with a quote; after that it "
        "is 'unknown'. Also bounds a whole trust question.",
    ),
    cfg.IntOpt(
        "threads",
        default=16,
        min=1,
        max=256,
        help="Hosts asked at the same time.",
    ),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> dict[cfg.OptGroup, list[Any]]:
    return {GROUP: OPTS}

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
"""``[mh_scheduler]``: options in nova.conf."""

from typing import Any

from oslo_config import cfg

GROUP = cfg.OptGroup("mh_scheduler", title="Trusted hosts")
OPTS = [
    cfg.StrOpt(
        "attestation_url",
        help="https origin of the trust attestation server, e.g. "
        "https://attest.example.org:15444. Unset, no host is trusted.",
    ),
    cfg.StrOpt(
        "ca_file",
        help="PEM file with the CA of the attestation server's certificate. "
        "Unset, the system's list is used.",
    ),
    cfg.StrOpt(
        "token_file",
        help="File (mode 0600) with a token of role 'reader' "
        "(mh-attest-manage token create). Read again when it changes.",
    ),
    cfg.FloatOpt(
        "timeout",
        default=5.0,
        min=0.1,
        max=60.0,
        help="Seconds the attestation server has to answer a question; "
        "more than its own [trust] timeout. After that no host passes "
        "whose state is not known.",
    ),
    cfg.IntOpt(
        "max_batch",
        default=1000,
        min=1,
        max=1000,
        help="Hosts in one question.",
    ),
    cfg.IntOpt(
        "ttl",
        default=30,
        min=0,
        max=3600,
        help="Seconds a state is used at most, whatever the attestation "
        "server says. Longer schedules faster, and finds a changed host "
        "later; the key server asks anew at each start in any case.",
    ),
    cfg.FloatOpt(
        "retry_after",
        default=2.0,
        min=0.0,
        max=60.0,
        help="Seconds during which an attestation server that failed is "
        "not asked again (and no host passes that depends on it).",
    ),
    cfg.ListOpt(
        "filters",
        default=["trusted"],
        help="Entry points of mh_scheduler.filters that "
        "mh_scheduler.filters.all_filters offers to "
        "[filter_scheduler] available_filters.",
    ),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[Any]]]:
    return [(GROUP, OPTS)]

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
"""``[listener_client]``: how this server calls trust agents."""

from typing import Any

from oslo_config import cfg

GROUP = cfg.OptGroup("listener_client", title="Calls to trust agents")
OPTS = [
    cfg.StrOpt(
        "certificate_file",
        help="PEM file with the client certificate that trust agents pin "
        "([listener] client_sha256 on the host).",
    ),
    cfg.StrOpt(
        "key_file",
        help="PEM file with its private key, mode 0600.",
    ),
    cfg.StrOpt(
        "ca_file",
        help="PEM file with the CA of the trust agents' certificates.",
    ),
    cfg.FloatOpt(
        "timeout",
        default=10.0,
        min=0.1,
        max=60.0,
        help="Seconds one call may take during enrolment, connection "
        "included. Trust questions use [trust] timeout.",
    ),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> dict[cfg.OptGroup, list[Any]]:
    return {GROUP: OPTS}

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
"""``[api]``: where and how the server listens."""

from typing import Any

from oslo_config import cfg

GROUP = cfg.OptGroup("api", title="HTTP interface")
OPTS = [
    cfg.StrOpt(
        "bind_host",
        default="127.0.0.1",
        help="Address that mh-attest-serve listens on. Loopback unless "
        "hosts, key servers and schedulers on other machines must reach it.",
    ),
    cfg.PortOpt(
        "bind_port",
        default=15444,
        help="TCP port that mh-attest-serve listens on.",
    ),
    cfg.StrOpt(
        "certificate_file",
        help="PEM file with the server's TLS certificate and its chain. "
        "mh-attest-serve does not start without it.",
    ),
    cfg.StrOpt(
        "key_file",
        help="PEM file with the TLS certificate's private key, mode 0600.",
    ),
    cfg.IntOpt(
        "threads",
        default=8,
        min=1,
        max=64,
        help="Requests served at the same time. Requests that ask a host "
        "wait for it, so this should exceed [trust] threads / 2.",
    ),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> dict[cfg.OptGroup, list[Any]]:
    return {GROUP: OPTS}

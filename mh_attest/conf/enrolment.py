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
"""``[enrolment]``: which hosts may be enrolled at all."""

from typing import Any

from oslo_config import cfg

GROUP = cfg.OptGroup("enrolment", title="Enrolment")
OPTS = [
    cfg.StrOpt(
        "ek_ca_dir",
        default="/etc/mh-attest/ek-ca",
        help="Directory of PEM files (*.pem, *.crt): the certificates of "
        "the TPM manufacturers that EKs are accepted from. Self-signed "
        "ones are roots, others intermediates. An empty directory admits "
        "no host. Never put a software TPM's test CA here.",
    ),
    cfg.ListOpt(
        "listener_networks",
        default=[],
        help="CIDRs that a host's trust agent may listen in; the server "
        "connects to no other address. Empty admits no host.",
    ),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> dict[cfg.OptGroup, list[Any]]:
    return {GROUP: OPTS}

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
"""``[authority]``: who this server is, and for how long its word holds."""

from typing import Any

from oslo_config import cfg

GROUP = cfg.OptGroup("authority", title="Identity of the authority")
OPTS = [
    cfg.StrOpt(
        "issuer",
        default="https://127.0.0.1:15444",
        help="Issuer written into results and VM reports; relying parties "
        "pin it. Changing it invalidates their release policies.",
    ),
    cfg.StrOpt(
        "state_dir",
        default="/var/lib/mystery-hill/attest",
        help="Directory (mode 0700) of the result-signing key, the "
        "enroller's key and certificate and the nonce key. "
        "'mh-attest-manage db sync' makes what is absent. Back it up: "
        "without these keys every host must be enrolled again.",
    ),
    cfg.IntOpt(
        "result_life",
        default=60,
        min=5,
        max=60,
        help="Seconds an attestation result is valid.",
    ),
    cfg.IntOpt(
        "ak_certificate_days",
        default=397,
        min=1,
        max=3650,
        help="Days an AK certificate is valid; the host is enrolled again "
        "before they end.",
    ),
    cfg.StrOpt(
        "evidence",
        default="tpm2",
        help="Evidence driver (namespace mh_attest.evidence) that hosts "
        "are appraised with.",
    ),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> dict[cfg.OptGroup, list[Any]]:
    return {GROUP: OPTS}

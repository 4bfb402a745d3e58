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

"""Options of the driver hook, group ``[mh]`` of nova.conf."""

from typing import Any

from oslo_config import cfg

group = cfg.OptGroup(
    "mh",
    title="Mystery Hill driver hook",
    help="How nova-compute reaches the Mystery Hill agent of its host.",
)

OPTS = [
    cfg.StrOpt(
        "agent_socket",
        default="/run/mystery-hill/agent.sock",
        help="Path of the agent's unix socket. Without an agent there, "
        "trusted instances are refused and all others are served.",
    ),
    cfg.IntOpt(
        "agent_timeout",
        default=10,
        min=1,
        max=120,
        help="Longest wait for an answer that needs no other server (status, "
        "ours, disks, forget and the like), seconds.",
    ),
    cfg.IntOpt(
        "launch_timeout",
        default=660,
        min=10,
        max=7200,
        help="Longest wait for an answer that needs the image's hash or the "
        "key server (make, start), seconds. Should be above the agent's "
        "[agent] measure_timeout.",
    ),
    cfg.IntOpt(
        "status_ttl",
        default=5,
        min=0,
        max=60,
        help="How long an answer to 'may this host carry trusted launches' "
        "is used again, seconds.",
    ),
    cfg.StrOpt(
        "uefi_firmware",
        default="/usr/share/OVMF/OVMF_CODE_4M.fd",
        help="File with the UEFI firmware of trusted guests whose image asks "
        "for UEFI; on the agent's list [agent] firmwares. Empty, or no such "
        "file: such images are refused.",
    ),
    cfg.BoolOpt(
        "strict_compat",
        default=True,
        help="Withdraw the host's trait and refuse trusted launches where "
        "the source of a nova method that the hook builds on is not the one "
        "it was tested with. False: only log it. Safe value: true.",
    ),
]


def register_opts(conf: Any) -> None:
    """Register the group on an oslo.config object; twice does no harm."""
    conf.register_group(group)
    conf.register_opts(OPTS, group=group)


def list_opts() -> list[tuple[Any, list[Any]]]:
    """For oslo-config-generator."""
    return [(group, OPTS)]

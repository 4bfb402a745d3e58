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
"""Options of the stream form."""

from oslo_config import cfg

stream = cfg.OptGroup(
    "stream", title="Opened images for hypervisors that pull them"
)

STREAM_OPTS = [
    cfg.BoolOpt(
        "enabled",
        default=False,
        help="Give opened images to ``mh-agent stream``. Whoever may use "
        "the socket gets the image in the clear, once its tenant's key "
        "server has released the key for that purpose. Safe value: false.",
    ),
    cfg.StrOpt(
        "socket",
        default="/run/mystery-hill/stream.sock",
        help="Path of the unix socket of ``mh-agent stream``. Its directory "
        "should be writable by root only.",
    ),
    cfg.ListOpt(
        "allowed_uids",
        item_type=cfg.types.Integer(min=0),
        default=[0],
        help="Numeric user ids that may receive opened images. nova's user "
        "is never needed here. Safe value: 0, root.",
    ),
    cfg.StrOpt(
        "spool_dir",
        default="/var/lib/mystery-hill/agent",
        help="Where the encrypted image lies, without a name, while it is "
        "hashed; needs as much room as the largest image.",
    ),
    cfg.IntOpt(
        "idle_timeout",
        default=300,
        min=1,
        max=7200,
        help="A stream in which nothing moves for so many seconds is given "
        "up.",
    ),
]

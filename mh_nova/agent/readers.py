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
"""How the process that reads guests' file systems is started here."""

import grp
import pwd
from dataclasses import dataclass
from typing import Any

from oslo_config import cfg

from mh_core.errors import InputError
from mh_reader.run import Limits

EVENT = "agent.conf.reader"

OPTS = [
    cfg.StrOpt(
        "reader_user",
        default="nobody",
        help="User that the process which reads guests' file systems runs "
        "as, with that user's group. It can open nothing as anybody; a user "
        "of its own is the safe value.",
    ),
    cfg.IntOpt(
        "reader_memory",
        default=512,
        min=64,
        max=65536,
        help="Memory of that process beyond its program, MiB. One whose "
        "disk needs more is ended, and the launch is refused.",
    ),
    cfg.IntOpt(
        "reader_timeout",
        default=600,
        min=5,
        max=7200,
        help="Longest time to measure the file systems of one image, "
        "seconds, of the clock and of the processor.",
    ),
    cfg.StrOpt(
        "reader_sha256",
        default="",
        regex=r"(?:[0-9a-f]{64})?",
        help="Digest of the program of that process, as the agent's audit "
        "log has it (agent.measurer.files.identity); another one is not run. "
        "Empty: the one that is installed when the agent starts.",
    ),
]


@dataclass(frozen=True)
class Reader:
    """
    :param digest: the only program that may run (hex).
    """

    limits: Limits
    digest: str


def configured(conf: Any, installed: str) -> Reader:
    """
    :param conf: the ``[agent]`` group.
    :param installed: digest of the program that is there now.
    :raises InputError: ``agent.conf.reader``: no such user.
    """
    try:
        entry = pwd.getpwnam(conf.reader_user)
        group = grp.getgrgid(entry.pw_gid)
    except KeyError as exc:
        raise InputError(EVENT, "reader_user names nobody here") from exc
    if entry.pw_uid == 0 or group.gr_gid == 0:
        raise InputError(EVENT, "reader_user must not be root")
    return Reader(
        Limits(
            seconds=conf.reader_timeout,
            memory=conf.reader_memory << 20,
            user=entry.pw_uid,
            group=group.gr_gid,
        ),
        conf.reader_sha256 or installed,
    )

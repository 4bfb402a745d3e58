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
"""Which config drives an image's manifest allows."""

from collections.abc import Sequence
from pathlib import Path

from mh_core import config_drive
from mh_core.errors import InputError

EVENT = "client.config-drive"
#: As many as a launch policy takes.
_MOST = 64


def config_drives(
    kind: str, user_data: Sequence[str], keys: Sequence[str]
) -> tuple[str, ...]:
    """For ``LaunchPolicy.config_drives``.

    :param kind: ``none``, ``pinned`` or ``any``.
    :param user_data: paths of files; each, or none, may be on a drive.
    :param keys: paths of SSH public keys; nova puts one there, or none.
    :raises InputError: ``client.config-drive.file``,
        ``client.config-drive.many``.
    """
    if kind == "none":
        return ()
    if kind == "any":
        return (config_drive.ANY,)
    contents = [b"", *map(_read, user_data)]
    lines: list[list[str]] = [[]]
    lines += [[_text(path)] for path in keys]
    found = {
        config_drive.pinned_digest(content, line)
        for content in contents
        for line in lines
    }
    if len(found) > _MOST:
        raise InputError(
            EVENT + ".many", f"more than {_MOST} user-data and key pairs"
        )
    return tuple(sorted(found))


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise InputError(
            EVENT + ".file", f"cannot read {path}: {exc.strerror}"
        ) from exc


def _text(path: str) -> str:
    try:
        text = _read(path).decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text or "\n" in text or "PRIVATE" in text:
        raise InputError(
            EVENT + ".file", f"{path} is not a public key of one line"
        )
    return text

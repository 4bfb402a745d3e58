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
"""libvirt's save directory as one that the kernel encrypts (fscrypt).

Set up at boot, before the directory is bound beneath libvirt's tmpfs. The key
is one of this boot only, or, where the machine seals one to its TPM (a
systemd credential), that one: then plain guests that were suspended can be
resumed after a reboot as well.
"""

import contextlib
import os
import shutil
import stat

from mh_core.errors import Conflict, Denied, NotFound
from mh_core.secret import Secret
from mh_nova.agent import fscrypt

EVENT = "agent.save-dir"
#: Name of the systemd credential with the key.
CREDENTIAL = "mh-save-key"
_NEW = ".mh-new"


def boot_key(credentials: str | None) -> tuple[Secret, bool]:
    """The machine's key, or one for this boot.

    :param credentials: directory of the service's credentials, if any.
    :returns: key, and whether it outlives a reboot.
    :raises Denied: ``agent.save-dir.key``: not 64 bytes.
    """
    if credentials:
        path = os.path.join(credentials, CREDENTIAL)
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            key = file.read(fscrypt.KEY_SIZE + 1)
            if len(key) != fscrypt.KEY_SIZE:
                raise Denied(
                    EVENT + ".key",
                    f"the credential {CREDENTIAL} must have "
                    f"{fscrypt.KEY_SIZE} bytes",
                )
            return Secret(key), True
    return Secret(os.urandom(fscrypt.KEY_SIZE)), False


def set_up(path: str, key: Secret) -> str:
    """Make a directory one that is encrypted under this key.

    1. its own policy is of this key: the key is given to the kernel again;
    2. it has the policy of another key, of a boot that is over: what is in
       it cannot be read any more, and is removed with it;
    3. it is empty: the policy is set;
    4. it holds files in the clear: refused, they are somebody's.

    :param path: the directory, not a mount point; made where it is missing.
    :returns: what was done, for the log.
    :raises NotFound: ``agent.save-dir.parent``.
    :raises Conflict: ``agent.save-dir.files``: see 4;
        ``agent.save-dir.mounted``: libvirt may be using it.
    :raises Denied: ``agent.fscrypt.key``, ``agent.fscrypt.policy``.
    """
    path = os.path.normpath(path)
    try:
        os.mkdir(path, 0o750)
    except FileExistsError:
        pass
    except OSError as exc:
        raise NotFound(
            EVENT + ".parent", "the directory cannot be made"
        ) from exc
    if os.path.ismount(path):
        raise Conflict(EVENT + ".mounted", "the directory is a mount point")
    fd = os.open(
        path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    )
    try:
        found = fscrypt.policy(fd)
        identifier = fscrypt.add_key(fd, key)
        if found is not None and found.identifier == identifier:
            return "the machine's key was given to it"
        if found is None:
            if os.listdir(fd):
                raise Conflict(
                    EVENT + ".files",
                    "there are files in the clear; move them away",
                )
            fscrypt.encrypt(fd, identifier)
            return "encrypted"
        _replace(path, os.fstat(fd), identifier)
        return "made anew: its old key is gone"
    finally:
        os.close(fd)


def _replace(path: str, old: os.stat_result, identifier: bytes) -> None:
    new = path + _NEW
    shutil.rmtree(new, ignore_errors=True)
    os.mkdir(new, 0o700)
    fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fscrypt.encrypt(fd, identifier)
        os.fchown(fd, old.st_uid, old.st_gid)
        os.fchmod(fd, stat.S_IMODE(old.st_mode))
    finally:
        os.close(fd)
    # without its key a name can be removed, though not read
    shutil.rmtree(path)
    os.rename(new, path)

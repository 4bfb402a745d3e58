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
"""``mh-agent-save-dir``: libvirt's save directory, encrypted at boot.

Once, before the directory is bound beneath libvirt's tmpfs; see
``mh-agent-save-dir.service``.
"""

import argparse
import os
import sys

from mh_core.errors import MHError
from mh_nova.agent import savedir

DEFAULT = "/var/lib/libvirt/qemu-kept/save"


def main(argv: list[str] | None = None) -> int:
    """Console script; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mh-agent-save-dir",
        description="Encrypt libvirt's save directory (fscrypt), with the "
        f"key in the systemd credential {savedir.CREDENTIAL}, or one that "
        "is gone with this boot.",
    )
    parser.add_argument("directory", nargs="?", default=DEFAULT)
    words = parser.parse_args(argv)
    try:
        key, lasting = savedir.boot_key(
            os.environ.get("CREDENTIALS_DIRECTORY")
        )
        done = savedir.set_up(words.directory, key)
    except (MHError, OSError) as exc:
        print(f"mh-agent-save-dir: {exc}", file=sys.stderr)
        return 1
    how = "key of this machine" if lasting else "key of this boot"
    print(f"{words.directory}: {done} ({how})")
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
"""``mh-libvirt-hook``: libvirt's QEMU hook on a trusted host.

Installed as ``/etc/libvirt/hooks/qemu`` (or below ``qemu.d``), libvirt runs
it around everything it does with a guest.  Only a guest that comes in by
live migration is asked about: the agent gets the domain XML that libvirt is
going to start, admits it, and puts the keys of its disks into libvirt.

It never changes the XML.  A guest with an encrypted disk that the agent
does not answer for is refused; one without goes on, whatever the agent does.
"""

import logging
import re
import sys
from collections.abc import Sequence

from mh_core.errors import MHError
from mh_core.secret import protect
from mh_nova.hook.agent_client import AgentClient

SOCKET = "/run/mystery-hill/agent.sock"
#: Seconds for the key server, the appraisal and the TPM.
TIMEOUT = 120
_MAX_XML = 1024 * 1024
_UUID = re.compile(
    r"<uuid>([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})</uuid>"
)
_LOG = logging.getLogger("mh-libvirt-hook")


def main(argv: Sequence[str] | None = None) -> int:
    """Console script: ``GUEST OPERATION SUB-OPERATION EXTRA``.

    :returns: 0 to let libvirt go on; its error says what was printed here.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[1:3] != ["migrate", "begin"]:
        return 0
    # before any message of ours: libvirt writes it to its log
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        protect(handler)
    xml = sys.stdin.read(_MAX_XML + 1)
    encrypted = "<encryption" in xml
    found = _UUID.search(xml)
    if len(xml) > _MAX_XML or found is None:
        _LOG.error("the domain XML cannot be read [hook.libvirt.xml]")
        return 1
    try:
        AgentClient(SOCKET, 10, TIMEOUT).migrate_in(found[1], xml)
    except MHError as error:
        _LOG.error("%s [%s]", error.message, error.event)
        refused = not error.event.startswith("hook.agent.")
        return 1 if refused or encrypted else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())

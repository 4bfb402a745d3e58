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
"""The saved memory of a suspended guest holds a domain of its own, and that
is the one libvirt runs at the next start, whatever it was given since."""

import os
import re

from mh_core.errors import Denied, MHError
from mh_nova.agent.admit import parse
from mh_nova.agent.secrets import Libvirt

EVENT = "agent.start.saved"
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")


def domain_name(xml: str) -> str:
    """Of a domain that is about to be started.

    :raises InputError: ``agent.admit.xml``.
    :raises Denied: ``agent.start.saved``: none, or an odd one.
    """
    names = [node.text or "" for node in parse(xml).findall("name")]
    if len(names) != 1 or not _NAME.fullmatch(names[0]):
        raise Denied(EVENT, "the domain has no plain name")
    return names[0]


def saved_domain(
    libvirt: Libvirt, folder: str, instance: str, xml: str
) -> str | None:
    """XML that libvirt would restore instead of ``xml``; None: there is no
    saved memory.

    libvirt looks for a file of the domain's name, not for what it knows of
    the domain: so do we.

    :param folder: libvirt's save directory.
    :raises Denied: ``agent.start.saved``: there is such a file, and libvirt
        does not say what is in it.
    :raises MHError: as :func:`domain_name`; ``agent.libvirt``.
    """
    path = os.path.join(folder, domain_name(xml) + ".save")
    try:
        found = libvirt.saved_xml(instance)
    except MHError as exc:
        raise Denied(EVENT, f"libvirt does not say: {exc.event}") from exc
    if found is None and os.path.lexists(path):
        raise Denied(EVENT, "there is saved memory that is not this guest's")
    return found

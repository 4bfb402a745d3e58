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
"""A virtual TPM in a domain: rows of the allow-list, and its decision.

An emulator's state is a file of the host's: it is allowed only where that
file is encrypted with the key that the tenant's key server derives for this
instance.  See :mod:`mh_nova.agent.domain_schema`.
"""

from typing import Any

from mh_nova.agent.domain_rule import ALIAS, EMPTY, rules

TPM = rules(
    ("devices/tpm", {"model": "tpm-tis|tpm-crb"}, EMPTY),
    (
        # not passthrough, which is the host's own TPM; not external, a
        # socket; no path, and nothing that writes a log of commands
        "devices/tpm/backend",
        {"type": "emulator", "version": r"2\.0"},
        EMPTY,
    ),
    (
        "devices/tpm/backend/encryption",
        {"secret": r"[0-9a-f\-]{36}"},
        EMPTY,
    ),
    ("devices/tpm/alias", ALIAS, EMPTY),
)


def right(root: Any, secret: str) -> bool:
    """Has the domain the one virtual TPM that it should have, or none?

    :param root: the domain; the rows are compared elsewhere.
    :param secret: uuid of the libvirt secret; empty: there must be none.
    """
    found = root.findall("devices/tpm")
    if not secret:
        return not found
    # each level once: libvirt would take one of two
    return (
        len(found) == 1
        and [dict(one.attrib) for one in found[0].findall("backend")]
        == [{"type": "emulator", "version": "2.0"}]
        and [
            dict(one.attrib) for one in found[0].findall("backend/encryption")
        ]
        == [{"secret": secret}]
    )

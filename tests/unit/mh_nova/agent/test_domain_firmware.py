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
"""UEFI firmware in a domain: a listed file, without variables."""

import dataclasses

import pytest

from mh_nova.agent.admit import admit
from tests.unit.mh_nova.agent.test_admit import facts, plain

FILE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
NOVA = (
    f"<loader type='pflash' readonly='yes' secure='no' stateless='yes'>{FILE}"
    "</loader>"
)


def events(words: str, *firmwares: str, os: str = "<os>") -> set[str]:
    xml = plain().replace("<os>", os).replace("</os>", words + "</os>")
    known = dataclasses.replace(facts(), firmwares=firmwares or (FILE,))
    return {event.id for event in admit(xml, known).events}


@pytest.mark.parametrize(
    "form",
    [
        NOVA,
        NOVA.replace(" secure='no'", ""),
        NOVA.replace("readonly", "format='raw' readonly"),
    ],
)
def test_a_listed_file_without_variables(form: str) -> None:
    assert events(form) == {"agent.admit.passed"}


def test_none_is_the_default() -> None:
    assert events("") == {"agent.admit.passed"}


BAD = {
    "not-listed": NOVA.replace("_4M", "_X"),
    "with-variables": NOVA.replace(" stateless='yes'", ""),
    "says-so": NOVA.replace("stateless='yes'", "stateless='no'"),
    "writable": NOVA.replace("readonly='yes'", "readonly='no'"),
    "not-said-to-be-read-only": NOVA.replace(" readonly='yes'", ""),
    "rom": NOVA.replace("pflash", "rom"),
    "untyped": NOVA.replace(" type='pflash'", ""),
    "secure": NOVA.replace("secure='no'", "secure='yes'"),
    "two": NOVA + NOVA,
    "template": NOVA + "<nvram template='/usr/share/OVMF/OVMF_VARS.fd'/>",
    "variables": NOVA + "<nvram>/var/lib/libvirt/qemu/nvram/x.fd</nvram>",
    "chosen-by-libvirt": "<firmware><feature name='secure-boot' "
    "enabled='no'/></firmware>",
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_no_other(name: str) -> None:
    assert events(BAD[name]) in (
        {"agent.admit.boot"},
        {"agent.admit.element"},
    )


def test_libvirt_does_not_choose() -> None:
    assert events("", os="<os firmware='efi'>") == {"agent.admit.element"}


def test_an_empty_list_allows_none() -> None:
    assert events(NOVA, "") == {"agent.admit.boot"}

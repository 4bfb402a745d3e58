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
"""A virtual TPM in a domain: the instance's own, or none."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from mh_core import vtpm
from mh_nova.agent.admit import admit
from mh_nova.agent.domain_tpm import right
from tests.unit.mh_nova.agent.test_admit import INSTANCE, facts, plain

OWN = vtpm.secret_uuid(INSTANCE)
OTHER = vtpm.secret_uuid(str(uuid.UUID(int=1)))
#: As nova 34 writes it (LibvirtConfigGuestVTPM.format_dom).
NOVA = (
    "<tpm model='{model}'><backend type='emulator' version='2.0'>"
    "<encryption secret='{secret}'/></backend></tpm>"
)
#: As libvirt 9 writes it of a guest that runs.
LIBVIRT = (
    "<tpm model='{model}'><backend type='emulator' version='2.0'>"
    "<encryption secret='{secret}'/></backend><alias name='tpm0'/></tpm>"
)
GOOD = NOVA.format(model="tpm-tis", secret=OWN)


def events(devices: str, tpm: str = OWN) -> set[str]:
    xml = plain().replace("</devices>", devices + "</devices>")
    return {event.id for event in admit(xml, facts({"tpm": tpm})).events}


@pytest.mark.parametrize("form", [NOVA, LIBVIRT])
@pytest.mark.parametrize("model", ["tpm-tis", "tpm-crb"])
def test_the_instances_own(form: str, model: str) -> None:
    xml = form.format(model=model, secret=OWN)
    assert events(xml) == {"agent.admit.passed"}
    # of one that has none on record
    assert events(xml, "") == {"agent.admit.tpm"}


BAD = {
    "missing": "",
    "two": GOOD + GOOD,
    "another-secret": NOVA.format(model="tpm-tis", secret=OTHER),
    "in-the-clear": "<tpm model='tpm-tis'><backend type='emulator' "
    "version='2.0'/></tpm>",
    "old": GOOD.replace("2.0", "1.2"),
    "no-version": GOOD.replace(" version='2.0'", ""),
    "of-the-host": "<tpm model='tpm-tis'><backend type='passthrough'>"
    "<device path='/dev/tpm0'/></backend></tpm>",
    "external": "<tpm model='tpm-tis'><backend type='external'>"
    "<source type='unix' mode='connect' path='/tmp/tpm'/></backend></tpm>",
    "elsewhere": GOOD.replace(
        "<encryption", "<source type='file' path='/tmp/state'/><encryption"
    ),
    "two-secrets": GOOD.replace(
        "<encryption",
        f"<encryption secret='{OTHER}'/><encryption",
    ),
    "two-backends": GOOD.replace(
        "</tpm>", "<backend type='emulator' version='2.0'/></tpm>"
    ),
    "debug": GOOD.replace("version", "debug='20' version"),
    "kept": GOOD.replace("version", "persistent_state='yes' version"),
    "model": GOOD.replace("tpm-tis", "tpm-spapr"),
    "extra": GOOD.replace("</tpm>", "<device path='/dev/tpm0'/></tpm>"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_no_other(name: str) -> None:
    found = events(BAD[name])
    assert found <= {"agent.admit.tpm", "agent.admit.element"}
    assert found
    without = events(BAD[name], "")
    assert "agent.admit.passed" not in without or name == "missing"


@given(
    st.sampled_from(("emulator", "passthrough", "external")),
    st.sampled_from(("2.0", "1.2", "")),
    st.sampled_from((OWN, OTHER, "")),
    st.integers(0, 2),
)
def test_only_the_one(
    kind: str, version: str, secret: str, count: int
) -> None:
    root = etree.Element("domain")
    devices = etree.SubElement(root, "devices")
    for _ in range(count):
        tpm = etree.SubElement(devices, "tpm", model="tpm-crb")
        backend = etree.SubElement(tpm, "backend", type=kind, version=version)
        etree.SubElement(backend, "encryption", secret=secret)
    good = (kind, version, secret, count) == ("emulator", "2.0", OWN, 1)
    assert right(root, OWN) is good
    assert right(root, "") is (count == 0)


def test_the_secrets_name_is_the_instances() -> None:
    assert OWN != OTHER
    assert vtpm.secret_uuid(INSTANCE) == OWN
    # what a key request carries of it
    assert vtpm.wanted(INSTANCE).to_dict() == {
        "name": "vtpm",
        "luks_uuid": INSTANCE,
    }

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
"""The corpus of domains, and what hypothesis makes of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_core.launch_policy import LaunchPolicy
from mh_nova.agent.admit import (
    MAX_XML,
    ExpectedDisk,
    Facts,
    admit,
    domain_digest,
)
from mh_nova.agent.domain_volume import ExpectedVolume
from mh_nova.agent.overlay import secret_uuid
from mh_nova.agent.paths import Root

CORPUS = Path(__file__).parents[3] / "vectors" / "admit"
INSTANCE = "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10"
IMAGE = "d5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51"
ROOT = Root("/var/lib/nova/instances")
NAMES = sorted(path.stem for path in CORPUS.glob("*.json"))


def facts(changes: dict[str, Any] | None = None) -> Facts:
    changes = changes or {}
    return Facts(
        instance=INSTANCE,
        purpose=changes.get("purpose", "launch"),
        disks=(
            ExpectedDisk(
                "disk",
                ROOT.disk(INSTANCE, "disk"),
                secret_uuid(INSTANCE, "disk", "overlay"),
                (ROOT.base(IMAGE), secret_uuid(INSTANCE, "disk", "base")),
            ),
            *(
                ExpectedDisk(
                    name,
                    ROOT.disk(INSTANCE, name),
                    secret_uuid(INSTANCE, name, "overlay"),
                    None,
                    read_only=name.startswith("disk.config"),
                )
                for name in changes.get("more", [])
            ),
        ),
        policies=tuple(
            LaunchPolicy.parse(one) for one in changes.get("policies", [{}])
        ),
        user_data_digest=changes.get("user_data", ""),
        console_log=ROOT.disk(INSTANCE, "console.log"),
        emulators=("/usr/bin/qemu-system-x86_64",),
        root=changes.get("root", "disk"),
        plain=changes.get("plain", ""),
        tpm=changes.get("tpm", ""),
        volumes=tuple(
            ExpectedVolume(*one) for one in changes.get("volumes", [])
        ),
    )


def plain() -> str:
    return (CORPUS / "plain-launch.xml").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_corpus(name: str) -> None:
    document = json.loads((CORPUS / f"{name}.json").read_text())
    path = CORPUS / f"{name}.xml"
    xml = path.read_text() if path.exists() else plain()
    verdict = admit(xml, facts(document["facts"]))
    assert sorted({event.id for event in verdict.events}) == document["expect"]
    assert verdict.allowed is (document["expect"] == ["agent.admit.passed"])


def test_the_corpus_is_there() -> None:
    assert len(NAMES) > 90


def test_passing_names_the_digest() -> None:
    verdict = admit(plain(), facts())
    assert verdict.events[0].detail == domain_digest(plain())


def test_too_large() -> None:
    padding = " " * MAX_XML
    xml = plain().replace("<vcpu>", padding + "<vcpu>", 1)
    verdict = admit(xml, facts())
    assert [event.id for event in verdict.events] == ["agent.admit.xml"]


def test_every_policy_must_list() -> None:
    """Manifest and release both; no policy at all allows nothing."""
    digest = "cd" * 32
    none = facts({"user_data": digest, "policies": []})
    assert not admit(plain(), none).allowed


def test_the_format_of_the_base() -> None:
    """libvirt's "raw" is QEMU's luks, and only for such a base: as qcow2,
    or the other way round, the guest would be shown something else."""
    raw = plain().replace('<format type="qcow2"/>', '<format type="raw"/>')
    raw = raw.replace("<format type='qcow2'/>", "<format type='raw'/>")
    assert raw != plain()
    qcow2, luks = facts(), facts()
    luks = replace(luks, disks=(replace(luks.disks[0], base_format="luks"),))
    assert admit(plain(), qcow2).allowed
    assert admit(raw, luks).allowed
    for xml, wrong in ((raw, qcow2), (plain(), luks)):
        verdict = admit(xml, wrong)
        assert [event.id for event in verdict.events] == ["agent.admit.disk"]


def test_no_disks_expected() -> None:
    verdict = admit(plain(), replace(facts(), disks=()))
    assert {event.id for event in verdict.events} == {
        "agent.admit.foreign-disk",
        "agent.admit.root-disk",
    }


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    assert not admit(text, facts()).allowed


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_element_more_is_refused(data: st.DataObject) -> None:
    """Put an element that libvirt may know or not anywhere."""
    xml = plain()
    places = [i for i in range(len(xml)) if xml.startswith("\n", i)]
    # not within <metadata>, which is free, nor after the document
    end, start = xml.index("</metadata>"), xml.index("<metadata>")
    places = [
        i
        for i in places
        if not start <= i < end and 20 < i < xml.index("</domain>")
    ]
    at = data.draw(st.sampled_from(places))
    name = data.draw(st.from_regex(r"[a-z]{3,8}X", fullmatch=True))
    changed = xml[:at] + f"<{name}/>" + xml[at:]
    assert not admit(changed, facts()).allowed


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_attribute_more_is_refused(data: st.DataObject) -> None:
    xml = plain()
    start, end = xml.index("<metadata>"), xml.index("</metadata>")
    places = [
        i + 1
        for i in range(len(xml) - 1)
        if xml[i] == "<" and xml[i + 1].isalpha() and not start <= i < end
    ]
    at = data.draw(st.sampled_from(places))
    after = at
    while xml[after].isalnum() or xml[after] == "_":
        after += 1
    changed = xml[:after] + ' extra="1"' + xml[after:]
    assert not admit(changed, facts()).allowed

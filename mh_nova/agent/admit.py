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
"""The admit decision: is this domain what the tenant allows?

Steps, with the id each refuses by:

1. the XML is small, plain and well-formed: no DTD, entity, comment or
   processing instruction (``agent.admit.xml``);
2. the purpose is one this agent starts guests for
   (``agent.admit.purpose``), and it is the domain of this instance
   (``agent.admit.instance``);
3. it boots from its root disk and nothing else, by libvirt's own order as
   well (``agent.admit.direct-boot``, ``agent.admit.boot``);
4. no part of the host or of another machine is passed into it
   (``agent.admit.passthrough``), no channel leads into it
   (``agent.admit.channel``), nobody can type at it
   (``agent.admit.console``), its emulator is a known one
   (``agent.admit.emulator``);
5. each disk is one of ours, exactly, over exactly its base, with exactly
   its secrets (``agent.admit.foreign-disk``, ``agent.admit.disk``), a
   config drive is there to be read only (``agent.admit.config-drive``; its
   content is :mod:`.config_drive`'s decision), a volume is encrypted with
   its own key (``agent.admit.volume``), the root disk is there
   (``agent.admit.root-disk``), and user-data is what the launch policy
   lists (``agent.admit.user-data``), a virtual TPM is there only where the
   instance has one, its state encrypted (``agent.admit.tpm``);
6. nothing else is in it (``agent.admit.element``).

Pure: what it knows of the host stands in :class:`Facts`.
"""

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lxml import etree

from mh_core.errors import InputError
from mh_core.launch_policy import LaunchPolicy
from mh_core.request import STARTS
from mh_core.verdict import Event, Findings, Verdict
from mh_nova.agent import (
    domain_boot,
    domain_tpm,
    domain_volume,
)
from mh_nova.agent.domain_schema import ALLOWED, NAMED
from mh_nova.agent.domain_shape import NO_STORE, encryption, shape
from mh_nova.agent.domain_volume import ExpectedVolume

EVENT = "agent.admit"
PASSED = EVENT + ".passed"
MAX_XML = 512 * 1024
ROOT = "disk"


@dataclass(frozen=True)
class ExpectedDisk:
    """
    :param path: of the overlay.
    :param secret: uuid of its libvirt secret.
    :param base: (path of the base, uuid of its secret), or None.
    :param base_format: QEMU's name of the base's format, qcow2 or luks.
    :param read_only: the guest may not write to it.
    """

    name: str
    path: str
    secret: str
    base: tuple[str, str] | None
    base_format: str = "qcow2"
    read_only: bool = False


@dataclass(frozen=True)
class Facts:
    """What the agent knows by itself.

    :param policies: every launch policy that must allow it: the
        manifest's and the release's.
    :param user_data_digest: hex, or empty for none.
    :param console_log: the one file that output may go to.
    :param root: name of the disk that it boots from.
    :param plain: path of the one disk that may be in the clear, where the
        key server allowed a plain rescue image; else empty.
    :param tpm: uuid of the secret of its virtual TPM; empty: it has none.
    :param firmwares: paths of the UEFI firmware that it may have.
    :param volumes: that were looked at, and are opened with their own keys.
    """

    instance: str
    purpose: str
    disks: tuple[ExpectedDisk, ...]
    policies: tuple[LaunchPolicy, ...]
    user_data_digest: str
    console_log: str
    emulators: tuple[str, ...] = field(default=())
    root: str = ROOT
    plain: str = ""
    tpm: str = ""
    firmwares: tuple[str, ...] = ()
    volumes: tuple[ExpectedVolume, ...] = ()


def domain_digest(xml: str) -> str:
    """SHA-256 (hex) of the XML as given."""
    return hashlib.sha256(xml.encode()).hexdigest()


def _listed(digest: str, lists: Iterator[tuple[str, ...]]) -> bool:
    """Every list has it; there is at least one list."""
    found = [
        any(hmac.compare_digest(digest, entry) for entry in entries)
        for entries in lists
    ]
    return bool(found) and all(found)


def parse(xml: str) -> Any:
    """Step 1.

    :raises InputError: ``agent.admit.xml``.
    """
    try:
        data = xml.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(EVENT + ".xml", "not text") from None
    if len(data) > MAX_XML:
        raise InputError(EVENT + ".xml", "the domain XML is too large")
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError):
        raise InputError(EVENT + ".xml", "not well-formed") from None
    info = root.getroottree().docinfo
    if info.doctype or (info.encoding or "utf-8").lower() not in (
        "utf-8",
        "ascii",
    ):
        raise InputError(EVENT + ".xml", "a DTD or an odd encoding")
    if root.getprevious() is not None or root.getnext() is not None:
        raise InputError(EVENT + ".xml", "something beside the domain")
    if any(not isinstance(node.tag, str) for node in root.iter()):
        raise InputError(
            EVENT + ".xml", "a comment, entity or processing instruction"
        )
    return root


def admit(xml: str, facts: Facts) -> Verdict:
    """Hold a final domain XML against the allow-list.

    :returns: every reason against it; allowed with
        ``agent.admit.passed`` where there is none.
    """
    found = Findings()
    # 1
    try:
        root = parse(xml)
    except InputError as exc:
        found.note(exc)
        return found.verdict()
    # 2
    if facts.purpose not in STARTS:
        found.add(EVENT + ".purpose", f"no guest starts for {facts.purpose}")
    if root.tag != "domain" or [
        node.text for node in root.findall("uuid")
    ] != [facts.instance]:
        found.add(EVENT + ".instance", "the domain is not this instance's")
    # 3, 4
    domain_boot.judge(root, facts.root == ROOT, facts.firmwares, found)
    _consoles(root, facts, found)
    for node in root.findall("devices/emulator"):
        if node.text not in facts.emulators:
            found.add(EVENT + ".emulator", "the emulator is not a known one")
    # 5
    _disks(root, facts, found)
    if facts.user_data_digest and not _listed(
        facts.user_data_digest, (p.user_data for p in facts.policies)
    ):
        found.add(
            EVENT + ".user-data", "the launch policy lists no such user-data"
        )
    if not domain_tpm.right(root, facts.tpm):
        found.add(EVENT + ".tpm", "the virtual TPM is not the instance's own")
    # 3, 4, 6
    _elements(root, "", found)
    if found.events:
        return found.verdict()
    return Verdict(True, (Event(PASSED, domain_digest(xml)),))


def _consoles(root: Any, facts: Facts, found: Findings) -> None:
    for node in [
        *root.findall("devices/serial"),
        *root.findall("devices/console"),
    ]:
        kind = node.get("type")
        if kind not in ("pty", "file"):
            found.add(
                EVENT + ".console",
                f"a {node.tag} of type {str(kind)[:16]} can be typed at",
            )
            continue
        files = [log.get("file") for log in node.findall("log")]
        if kind == "file":
            files += [source.get("path") for source in node.findall("source")]
        if any(name != facts.console_log for name in files):
            found.add(
                EVENT + ".console", "output goes to another file than nova's"
            )


def _disks(root: Any, facts: Facts, found: Findings) -> None:
    expected = {disk.path: disk for disk in facts.disks}
    volumes = {one.path: one for one in facts.volumes}
    seen: set[str] = set()
    for node in root.findall("devices/disk"):
        path = domain_volume.path_of(node)
        if path in seen:
            found.add(EVENT + ".foreign-disk", "a disk is there twice")
        seen.add(path)
        if path and path == facts.plain:
            _plain(node, facts, found)
        elif path in expected:
            _disk(node, expected[path], found)
        elif path in volumes:
            _volume(node, volumes[path], found)
        else:
            found.add(
                EVENT + ".foreign-disk",
                "a disk that is not one of the instance's encrypted disks",
            )
    for disk in facts.disks:
        if disk.name == facts.root and disk.path not in seen:
            found.add(EVENT + ".root-disk", "the root disk is not there")
    if facts.plain:
        if facts.plain not in seen:
            found.add(EVENT + ".root-disk", "the rescue disk is not there")
    elif not any(disk.name == facts.root for disk in facts.disks):
        found.add(EVENT + ".root-disk", "the instance has no root disk")
    # 3
    path = facts.plain or next(
        (disk.path for disk in facts.disks if disk.name == facts.root), ""
    )
    if path in seen:
        domain_boot.judge_disks(root.findall("devices/disk"), path, found)


#: With <encryption>, libvirt takes "raw" for QEMU's driver "luks".
_LIBVIRT = {"qcow2": "qcow2", "luks": "raw"}


def _disk(node: Any, disk: ExpectedDisk, found: Findings) -> None:
    """One of ours: source, format and chain, value by value."""
    chain = NO_STORE
    if disk.base is not None:
        path, secret = disk.base
        chain = (
            "backingStore",
            [("type", "file")],
            "",
            [
                ("format", [("type", _LIBVIRT[disk.base_format])], "", []),
                ("source", [("file", path)], "", [encryption(secret)]),
                NO_STORE,
            ],
        )
    source = ("source", [("file", disk.path)], "", [encryption(disk.secret)])
    drivers = node.findall("driver")
    if (
        node.get("type") != "file"
        or len(drivers) != 1
        or (drivers[0].get("name"), drivers[0].get("type"))
        != ("qemu", "qcow2")
        or [shape(one) for one in node.findall("source")] != [source]
        or [shape(one) for one in node.findall("backingStore")] != [chain]
        or not (_read_only(node) if disk.read_only else _writable(node))
    ):
        found.add(
            EVENT + (".config-drive" if disk.read_only else ".disk"),
            f"{disk.name} is not attached as the encrypted disk it is",
        )


def _volume(node: Any, volume: ExpectedVolume, found: Findings) -> None:
    if not domain_volume.right(node, volume):
        found.add(
            EVENT + ".volume",
            f"volume {volume.id} is not attached as the encrypted volume "
            "it is",
        )


def admit_volume(
    xml: str, volume: ExpectedVolume, domain: str | None = None, root: str = ""
) -> Verdict:
    """Hold the device that is to be plugged in against the allow-list.

    :param xml: one ``<disk>``.
    :param domain: XML of the domain that gets it, which must go on to boot
        from the disk at the path ``root``; None: there is none.
    :returns: as :func:`admit`.
    """
    found = Findings()
    try:
        node = parse(xml)
        there = None if domain is None else parse(domain)
    except InputError as exc:
        found.note(exc)
        return found.verdict()
    if node.tag != "disk":
        found.add(EVENT + ".element", "the device is not a disk")
    _volume(node, volume, found)
    if node.find("boot") is not None:
        found.add(EVENT + ".boot", "a device has a boot order")
    if there is not None:
        # nova writes it into the domain of every later start
        disks = [*there.findall("devices/disk"), node]
        domain_boot.judge_disks(disks, root, found)
    _elements(node, "devices/disk", found)
    if found.events:
        return found.verdict()
    return Verdict(True, (Event(PASSED, domain_digest(xml)),))


def _plain(node: Any, facts: Facts, found: Findings) -> None:
    """The disk of a plain rescue image: no other file, nothing of ours."""
    drivers = node.findall("driver")
    source: Any = ("source", [("file", facts.plain)], "", [])
    if (
        node.get("type") != "file"
        or len(drivers) != 1
        or drivers[0].get("type") not in ("qcow2", "raw")
        or [shape(one) for one in node.findall("source")] != [source]
        or node.find("backingStore") is not None
    ):
        found.add(EVENT + ".disk", "the rescue disk is not a plain file")


def _writable(node: Any) -> bool:
    return node.get("device") == "disk" and node.find("readonly") is None


def _read_only(node: Any) -> bool:
    return node.get("device") == "cdrom" or (
        node.get("device") == "disk" and node.find("readonly") is not None
    )


def _elements(node: Any, path: str, found: Findings) -> None:
    """Every element against the allow-list."""
    text = (node.text or "") + "".join(child.tail or "" for child in node)
    rule = ALLOWED.get(path)
    if rule is None:
        _refuse(path, "is not allowed", found)
        return
    wrong = rule.refuses(dict(node.attrib), text.strip())
    if wrong:
        _refuse(path, f"{wrong} is not allowed", found)
    for child in node:
        name = f"{path}/{child.tag}" if path else child.tag
        # libvirt and nova keep notes here; nothing acts on them
        if name != "metadata":
            _elements(child, name, found)


def _refuse(path: str, why: str, found: Findings) -> None:
    cause = NAMED.get(path, "element")
    if path.startswith("{http://libvirt.org/schemas/domain/qemu/"):
        cause = "passthrough"
    elif path == "devices/interface":
        cause = "passthrough"
    elif path.startswith(("devices/serial", "devices/console")):
        cause = "console"
    shown = path if path.isascii() else "an element"
    found.add(f"{EVENT}.{cause}", f"{shown[:96] or 'domain'}: {why}")

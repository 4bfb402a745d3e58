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
"""From records to what the decisions and libvirt need; no judgement here."""

from typing import Any

from mh_core import vtpm
from mh_core.manifest import claimed_driver
from mh_core.secret import Secret
from mh_core.vm_report import VmClaims
from mh_nova.agent.admit import ExpectedDisk
from mh_nova.agent.attempt import Attempt, Opened
from mh_nova.agent.overlay import BaseFile, secret_uuid
from mh_nova.agent.paths import Root
from mh_nova.agent.store import DiskRecord, InstanceRecord


def base_path(
    root: Root, record: InstanceRecord, disk: DiskRecord
) -> BaseFile | None:
    """Computed, never read from a header; None for a disk without base.

    Its format is what the record's manifest says, which is verified, and
    held against the file, before each start.
    """
    if not disk.base:
        return None
    return BaseFile(root.base(record.image), claimed_driver(record.manifest))


def expected_disks(
    root: Root, record: InstanceRecord
) -> tuple[ExpectedDisk, ...]:
    """The disks a domain of this instance may have."""
    out = []
    for disk in record.disks:
        base = base_path(root, record, disk)
        out.append(
            ExpectedDisk(
                disk.name,
                root.disk(record.instance, disk.name),
                secret_uuid(record.instance, disk.name, "overlay"),
                None
                if base is None
                else (
                    base.path,
                    secret_uuid(record.instance, disk.name, "base"),
                ),
                "qcow2" if base is None else base.driver,
                read_only=disk.drive,
            )
        )
    return tuple(out)


def disk_answer(record: InstanceRecord, disk: DiskRecord) -> dict[str, Any]:
    """What the hook is told of a disk: the secrets' names, never a key."""
    instance = record.instance
    return {
        "name": disk.name,
        "overlay_secret": secret_uuid(instance, disk.name, "overlay"),
        "base_secret": secret_uuid(instance, disk.name, "base")
        if disk.base
        else "",
        "base": disk.base,
        "base_format": claimed_driver(record.manifest) if disk.base else "",
    }


def secret_keys(record: InstanceRecord, opened: Opened) -> dict[str, Secret]:
    """libvirt secret uuid to disk key."""
    keys: dict[str, Secret] = {}
    for disk in record.disks:
        name = secret_uuid(record.instance, disk.name, "overlay")
        keys[name] = opened.payload.overlay_keys[disk.name]
        if disk.base:
            name = secret_uuid(record.instance, disk.name, "base")
            keys[name] = opened.payload.dek
    # asked for only where a guest is to run with it
    if vtpm.DISK in opened.payload.overlay_keys:
        keys[vtpm.secret_uuid(record.instance)] = opened.payload.overlay_keys[
            vtpm.DISK
        ]
    return keys


def tpm_secret(record: InstanceRecord) -> str:
    """Uuid of the libvirt secret of its virtual TPM; empty: it has none."""
    return vtpm.secret_uuid(record.instance) if record.vtpm else ""


def vm_claims(attempt: Attempt, now: int) -> VmClaims:
    """What is reported about a guest that was started."""
    request, measured = attempt.request, attempt.measured
    return VmClaims(
        instance=request.instance,
        project=request.project,
        image=request.image,
        key_id=request.key_id,
        kms_origin=request.kms_origin,
        host=request.host,
        purpose=request.purpose,
        manifest_digest=request.manifest_digest,
        domain_digest=attempt.domain_digest,
        request_digest=request.digest().hex(),
        started_at=now,
        measured={} if measured is None else measured.verdicts,
    )

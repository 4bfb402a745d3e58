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
"""Verbs of the agent's socket: the table, and the reading of each request.

No verb returns a key, quotes, unwraps or takes a path; what a domain names
as its disks is checked by the agent itself.
"""

import importlib.metadata
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mh_core.errors import NotFound
from mh_core.fields import Fields, text_item
from mh_core.request import PURPOSES
from mh_nova.agent import verbs_attach, verbs_migration, verbs_recover
from mh_nova.agent.guard import Guard
from mh_nova.agent.launch import Launcher
from mh_nova.agent.ours import Ours
from mh_nova.agent.precache import STAGES
from mh_nova.agent.store import DISK_NAME, DiskRecord, InstanceRecord

EVENT = "agent.verb"
_MAX_SIZE = 1 << 50
_OF_A_RESCUE = r"disk\.(config\.)?rescue"
_OF_A_LAUNCH = r"disk(\.(local|swap|eph[0-9]{1,3}|config))?"


@dataclass(frozen=True)
class Context:
    """What the verbs work on."""

    launcher: Launcher
    guard: Guard
    ours: Ours


def status(context: Context, fields: Fields) -> dict[str, Any]:
    fields.end()
    findings = context.guard.findings()
    return {
        "trusted": not findings,
        "findings": [
            {"event": found.id, "message": found.detail} for found in findings
        ],
        "enrolled": context.guard.enrolled,
        "version": _version(),
        "fs_verity": context.guard.fs_verity,
    }


def _version() -> str:
    try:
        return importlib.metadata.version("mystery-hill")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _disk(
    event: str, pattern: str, root: str, virtual_size: int
) -> Callable[[Any], DiskRecord]:
    def convert(value: Any) -> DiskRecord:
        fields = Fields(value, event)
        name = fields.text("name", pattern=pattern)
        size = fields.integer("size", 0, _MAX_SIZE)
        base = fields.boolean("base", name == root)
        fields.end()
        if base and name != root:
            raise fields.fail("base", f"only {root!r} lies over a base")
        if base and not size:
            size = virtual_size
        return DiskRecord(name, size, str(uuid.uuid4()), base)

    return convert


def _record(fields: Fields, pattern: str, root: str) -> InstanceRecord:
    virtual_size = fields.integer("virtual_size", 0, _MAX_SIZE)
    disks = fields.list(
        "disks", _disk(fields.event, pattern, root, virtual_size), 16
    )
    names = [disk.name for disk in disks]
    if root not in names or len(set(names)) != len(names):
        raise fields.fail("disks", f"one {root!r}, and each name once")
    return InstanceRecord(
        instance=fields.uuid("instance"),
        image=fields.uuid("image"),
        project=fields.text("project", maximum=64),
        user=fields.text("user", maximum=64),
        host=fields.text("host", pattern=r"[A-Za-z0-9._\-]{1,255}"),
        key_url=fields.text("key_url", maximum=2048),
        key_id=fields.uuid("key_id"),
        manifest=fields.text(
            "manifest", maximum=256 * 1024, pattern=r"[A-Za-z0-9_.\-]+"
        ),
        compat=fields.boolean("compat"),
        user_data_digest=fields.text(
            "user_data_digest", pattern=r"|[0-9a-f]{64}"
        ),
        disks=disks,
        vtpm=fields.boolean("vtpm", False),
    )


def _ticket(fields: Fields) -> str:
    return fields.text("ticket", pattern=r"[A-Za-z0-9_\-]{0,64}")


def prepare(context: Context, fields: Fields) -> dict[str, Any]:
    record = _record(fields, _OF_A_LAUNCH, "disk")
    purpose = fields.choice("purpose", PURPOSES)
    ticket = _ticket(fields)
    fields.end()
    context.launcher.prepare(record, purpose, ticket)
    return {}


def ask_launch(context: Context, fields: Fields) -> dict[str, Any]:
    record = _record(fields, _OF_A_LAUNCH, "disk")
    fields.choice("purpose", ("launch",))
    ticket = _ticket(fields)
    fields.end()
    context.launcher.ask_launch(record, ticket)
    return {}


def ask_start(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    context.launcher.ask_start(instance)
    return {}


def prepare_rescue(context: Context, fields: Fields) -> dict[str, Any]:
    record = _record(fields, _OF_A_RESCUE, "disk.rescue")
    ticket = _ticket(fields)
    fields.choice("purpose", ("rescue",))
    fields.end()
    context.launcher.prepare_rescue(record, ticket)
    return {}


def make_rescue(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    downloaded = fields.boolean("downloaded")
    fields.end()
    return {"disks": context.launcher.make_rescue(instance, downloaded)}


def allow_plain(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    context.launcher.allow_plain(instance)
    return {}


def end_rescue(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    context.launcher.end_rescue(instance)
    return {}


def make(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    downloaded = fields.boolean("downloaded")
    fields.end()
    return {"disks": context.launcher.make(instance, downloaded)}


def disks(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    return {"disks": context.launcher.disks(instance)}


def start(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    xml = fields.text("xml", maximum=1024 * 1024)
    purpose = fields.choice("purpose", PURPOSES)
    fields.end()
    event, detail = context.launcher.start(instance, xml, purpose)
    return {"event": event, "detail": detail}


def _file(value: Any) -> tuple[tuple[str, ...], bytes]:
    fields = Fields(value, EVENT + ".drive")
    paths = fields.list("paths", text_item(fields.event), 256)
    data = fields.b64u("data", maximum=1 << 20)
    fields.end()
    return paths, data


def drive(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    name = fields.text("name", pattern=r"disk\.config(\.rescue)?")
    given = fields.list("files", _file, 256)
    if not given:
        raise fields.fail("files", "none")
    fields.end()
    files = {path: data for paths, data in given for path in paths}
    if len(files) != sum(len(paths) for paths, _ in given):
        raise fields.fail("files", "a path appears twice")
    context.launcher.drive(instance, name, files)
    return {}


def started(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    ok = fields.boolean("ok")
    fields.end()
    context.launcher.started(instance, ok)
    return {}


def ours(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    why = context.ours.why(instance)
    return {"ours": bool(why), "why": why, **context.ours.source(instance)}


def suspend(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    context.launcher.suspend(instance)
    return {}


def cache(context: Context, fields: Fields) -> dict[str, Any]:
    image = fields.uuid("image")
    manifest = fields.text(
        "manifest", maximum=256 * 1024, pattern=r"[A-Za-z0-9_.\-]+"
    )
    stage = fields.choice("stage", STAGES)
    fields.end()
    context.launcher.cache(image, manifest, stage)
    return {}


def lease(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    return context.launcher.lease(instance)


def forget(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    context.launcher.forget(instance)
    return {}


def snapshot_check(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    context.launcher.snapshot_check(instance)
    return {}


def snapshot(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    image = fields.uuid("image")
    fields.end()
    context.launcher.snapshot(instance, image)
    return {}


def flatten(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    context.launcher.flatten(instance)
    return {}


def copy(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    return context.launcher.copy(instance)


def storing(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    context.launcher.storing(instance)
    return {}


def register(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    context.launcher.register(instance)
    return {}


def end(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    context.launcher.end_copy(instance)
    return {}


def describe(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    return context.launcher.describe(instance)


def resize(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    disk = fields.text("disk", pattern=DISK_NAME)
    size = fields.integer("size", 1, _MAX_SIZE)
    fields.end()
    context.launcher.resize(instance, disk, size)
    return {}


def arrived(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    context.launcher.arrived(instance)
    return {}


VERBS: dict[str, Callable[[Context, Fields], dict[str, Any]]] = {
    "status": status,
    "prepare": prepare,
    "ask-launch": ask_launch,
    "ask-start": ask_start,
    "make": make,
    "disks": disks,
    "start": start,
    "drive": drive,
    "started": started,
    "prepare-rescue": prepare_rescue,
    "make-rescue": make_rescue,
    "allow-plain-rescue": allow_plain,
    "end-rescue": end_rescue,
    "ours": ours,
    "suspend": suspend,
    "cache": cache,
    "lease": lease,
    "forget": forget,
    "snapshot-check": snapshot_check,
    "snapshot": snapshot,
    "flatten": flatten,
    "copy": copy,
    "storing": storing,
    "register": register,
    "end": end,
    "describe": describe,
    "resize": resize,
    "arrived": arrived,
    **verbs_migration.VERBS,
    **verbs_recover.VERBS,
    **verbs_attach.VERBS,
}


def dispatch(context: Context, value: Any) -> dict[str, Any]:
    """Run one request.

    :raises MHError: whatever refused it.
    """
    fields = Fields(value, EVENT)
    verb = fields.text("verb", maximum=32)
    handler = VERBS.get(verb)
    if handler is None:
        raise NotFound(EVENT + ".unknown", "no such verb")
    fields.event = f"{EVENT}.{verb}"
    return handler(context, fields)

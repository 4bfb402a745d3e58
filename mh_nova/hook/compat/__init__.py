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

"""Is this the nova the hook was tested with?

nova promises nothing about the methods we override. Beside this file lies,
for each tested version, what they looked like: their signatures, and the
SHA-256 of their source. ``python -m mh_nova.hook.compat`` prints the record
of the nova that is installed.
"""

import hashlib
import importlib
import inspect
import json
from collections.abc import Mapping
from importlib import metadata, resources
from typing import Any

from nova.safe_utils import get_wrapped_function

from mh_core.errors import Denied
from mh_core.verdict import Event

#: Class or module to the names in it that the hook overrides or calls.
TARGETS: dict[str, tuple[str, ...]] = {
    "nova.virt.libvirt.driver:LibvirtDriver": (
        "__init__",
        "_clean_shutdown",
        "_cleanup",
        "_add_vtpm_device",
        "_add_vtpm_secret_to_live_migrate_data",
        "_build_device_metadata",
        "_configure_guest_by_virt_type",
        "_create_and_inject_local_root",
        "_create_configdrive",
        "_create_guest",
        "_create_guest_with_network",
        "_create_image",
        "_create_images_and_backing",
        "_create_snapshot_metadata",
        "_destroy",
        "_disconnect_volume",
        "_get_guest_disk_config",
        "_get_guest_storage_config",
        "_get_or_create_secret_for_vtpm",
        "_get_volume_config",
        "_hard_reboot",
        "_live_migration",
        "_live_migration_operation",
        "_needs_rebase_original_qcow2_image",
        "_resize_attached_volume",
        "_soft_reboot",
        "_try_fetch_image_cache",
        "attach_interface",
        "attach_volume",
        "cache_image",
        "check_can_live_migrate_destination",
        "check_can_live_migrate_source",
        "cleanup",
        "confirm_migration",
        "destroy",
        "emit_event",
        "extend_volume",
        "finish_migration",
        "finish_revert_migration",
        "get_available_resource",
        "get_console_output",
        "get_info",
        "get_instance_disk_info",
        "get_serial_console",
        "get_spice_console",
        "get_vnc_console",
        "failed_spawn_cleanup",
        "get_device_name_for_instance",
        "init_host",
        "live_migration",
        "live_migration_abort",
        "migrate_disk_and_power_off",
        "post_live_migration_at_destination",
        "post_live_migration_at_source",
        "power_off",
        "power_on",
        "process_instances_at_startup",
        "reboot",
        "rebuild",
        "pre_live_migration",
        "prepare_for_spawn",
        "rescue",
        "resume",
        "resume_state_on_host_boot",
        "rollback_live_migration_at_destination",
        "rollback_live_migration_at_source",
        "snapshot",
        "spawn",
        "suspend",
        "swap_volume",
        "unrescue",
        "update_provider_tree",
        "volume_snapshot_create",
    ),
    "nova.virt.libvirt.guest:Guest": ("__init__", "migrate"),
    "nova.virt.libvirt.imagebackend:Backend": (
        "__init__",
        "backend",
        "by_libvirt_path",
        "by_name",
    ),
    "nova.virt.libvirt.imagebackend:Image": (
        "__init__",
        "cache",
        "create_image",
        "flatten",
        "get_disk_size",
        "get_model",
        "is_file_in_instance_path",
        "libvirt_info",
        "resize_image",
        "resolve_driver_format",
        "rollback_to_snap",
        "snapshot_extract",
    ),
    "nova.virt.libvirt.imagecache:ImageCacheManager": (
        "_list_backing_images",
    ),
    "nova.virt.libvirt.imagebackend": ("_update_utime_ignore_eacces",),
    "nova.virt.libvirt.config:LibvirtConfigGuest": ("_format_os",),
    "nova.virt.libvirt.config:LibvirtConfigGuestDisk": ("format_dom",),
    "nova.virt.libvirt.config:LibvirtConfigGuestVTPM": ("__init__",),
    "nova.api.metadata.base:InstanceMetadata": (
        "__init__",
        "metadata_for_config_drive",
    ),
    "nova.virt.libvirt.utils": (
        "restore_vtpm_dir",
        "save_and_migrate_vtpm_dir",
    ),
    "nova.virt.libvirt.blockinfo": ("_get_disk_mapping", "get_eph_disk"),
    "nova.virt.hardware": (
        "get_secure_boot_constraint",
        "get_vtpm_constraint",
    ),
    "nova.virt.images": ("do_image_deep_inspection", "fetch"),
    "nova.image.glance:API": ("get", "update"),
    "nova.compute.manager:ComputeManager": (
        "_error_out_instance_on_exception",
        "_do_rebuild_instance",
        "_finish_resize",
        "_finish_revert_resize",
        "_get_device_name_for_instance",
        "_resize_instance",
        "_shelve_instance",
        "_snapshot_instance",
        "_unshelve_instance",
        "rebuild_instance",
        "rescue_instance",
    ),
}
#: The series the hook is written for.
SERIES = "34."

Record = dict[str, dict[str, str]]


def current() -> Record:
    """Signature and source hash of every target in the installed nova.

    :raises Denied: ``hook.compat.missing``.
    """
    found: Record = {}
    for path, names in TARGETS.items():
        module, _, klass = path.partition(":")
        owner: Any = importlib.import_module(module)
        try:
            if klass:
                owner = getattr(owner, klass)
            for name in names:
                function = inspect.unwrap(getattr(owner, name))
                if function.__name__ != name:
                    # not every decorator says what it wraps
                    function = get_wrapped_function(function)
                source = inspect.getsource(function).encode()
                found[f"{path}.{name}"] = {
                    "signature": str(inspect.signature(function)),
                    "sha256": hashlib.sha256(source).hexdigest(),
                }
        except (AttributeError, OSError, TypeError) as exc:
            raise Denied(
                "hook.compat.missing",
                f"this nova's {path} is not the one the hook is made for",
            ) from exc
    return found


def recorded(version: str) -> Record | None:
    """What was tested, or None for a version that was not."""
    entry = resources.files(__name__).joinpath(f"{version}.json")
    if not entry.is_file():
        return None
    record: Record = json.loads(entry.read_text(encoding="utf-8"))["methods"]
    return record


def newest() -> str:
    """The newest version with a record."""
    versions = [
        entry.name.removesuffix(".json")
        for entry in resources.files(__name__).iterdir()
        if entry.name.endswith(".json")
    ]
    return max(
        versions, key=lambda text: tuple(int(n) for n in text.split("."))
    )


def compare(
    tested: Mapping[str, Mapping[str, str]],
    found: Mapping[str, Mapping[str, str]],
) -> tuple[Event, ...]:
    """What differs in source only, as findings.

    :raises Denied: ``hook.compat.signature``: overriding would break
        instances of any kind, so nova-compute must not start.
    """
    broken = sorted(
        name
        for name in tested.keys() | found.keys()
        if name not in tested
        or name not in found
        or tested[name]["signature"] != found[name]["signature"]
    )
    if broken:
        raise Denied(
            "hook.compat.signature",
            "nova's interface differs from the tested one: "
            + ", ".join(name.rpartition(".")[2] for name in broken),
        )
    changed = sorted(
        name.rpartition(".")[2]
        for name in tested
        if tested[name]["sha256"] != found[name]["sha256"]
    )
    if not changed:
        return ()
    return (
        Event(
            "hook.compat.source",
            "nova methods differ from the tested ones: " + ", ".join(changed),
        ),
    )


def check() -> tuple[Event, ...]:
    """Findings about the installed nova.

    :raises Denied: ``hook.compat.missing``, ``hook.compat.signature``.
    """
    version = metadata.version("nova")
    tested = recorded(version) or recorded(newest())
    if tested is None:
        raise Denied("hook.compat.missing", "no tested nova is recorded")
    events = compare(tested, current())
    if not version.startswith(SERIES):
        events += (
            Event(
                "hook.compat.version",
                f"nova {version} is not of the tested series",
            ),
        )
    return events


def document() -> str:
    """The record of the installed nova, as the file beside this one."""
    return (
        json.dumps(
            {"nova": metadata.version("nova"), "methods": current()},
            indent=1,
            sort_keys=True,
        )
        + "\n"
    )

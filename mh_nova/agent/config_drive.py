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
"""The config-drive decision: what of the cloud's words may a guest read?

The hook hands over the files as nova made them, in memory; no image of them
exists before this one. Steps, with the id each refuses by:

1. the files are few, small, and of nova's names
   (``agent.config-drive.files``);
2. every launch policy lists a digest for a config drive
   (``agent.config-drive.policy``);
3. user-data is the same for every version of the format and, like any
   user-data, one that every policy lists (``agent.config-drive.user-data``);
4. where some policy pins what the guest obeys, the drive is made of those
   files only that this module knows: host name, network and the like as the
   cloud says, no vendor data, no administrator's password; an injected file
   or a member of unknown shape refuses (``agent.config-drive.content``), as
   do user-data and SSH keys whose digest is not listed
   (``agent.config-drive.pinned``).

Pure: bytes in, files out; :func:`image` makes an ISO of them in memory.
"""

import hmac
import io
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pycdlib
from pycdlib import pycdlibexception

from mh_core import config_drive
from mh_core.encoding import canonical_json, parse_json
from mh_core.errors import Denied, InputError
from mh_core.fields import Fields
from mh_core.launch_policy import LaunchPolicy

EVENT = "agent.config-drive"
LABEL = "config-2"
MAX_FILES = 256
#: Bytes of all files together.
MAX_TOTAL = 8 << 20
_PATH = re.compile(r"(openstack|ec2)(/[A-Za-z0-9][A-Za-z0-9._\-]{0,63}){1,3}")
_META = re.compile(r"openstack/[^/]+/meta_data\.json")
_NETWORK = re.compile(r"openstack/[^/]+/network_data\.json")
_USER_DATA = re.compile(r"openstack/[^/]+/user_data|ec2/[^/]+/user-data")
#: Members of meta_data.json that say what the instance is; none is obeyed.
_KEPT = (
    "uuid",
    "hostname",
    "name",
    "launch_index",
    "availability_zone",
    "random_seed",
    "project_id",
    "devices",
    "dedicated_cpus",
    "meta",
)

Files = dict[str, bytes]


def _listed(digest: str, entries: Iterable[str]) -> bool:
    return any(hmac.compare_digest(digest, entry) for entry in entries)


def compose(
    files: Mapping[str, bytes],
    policies: tuple[LaunchPolicy, ...],
    instance: str,
) -> Files:
    """The decision.

    :param files: path to content, as nova's ``metadata_for_config_drive``.
    :param policies: the manifest's and the release's.
    :returns: what the drive is made of.
    :raises Denied: as in the module's list.
    """
    # 1
    if (
        not 0 < len(files) <= MAX_FILES
        or sum(map(len, files.values())) > MAX_TOTAL
        or any(not _PATH.fullmatch(path) for path in files)
        # a file in the place of a directory
        or any(
            other.startswith(path + "/") for path in files for other in files
        )
    ):
        raise Denied(EVENT + ".files", "no config drive has such files")
    # 2
    if not policies or any(not policy.config_drives for policy in policies):
        raise Denied(
            EVENT + ".policy", "the launch policy allows no config drive"
        )
    # 3
    user_data = _user_data(files, policies)
    # 4
    pinning = [
        policy.config_drives
        for policy in policies
        if not _listed(config_drive.ANY, policy.config_drives)
    ]
    if not pinning:
        return dict(files)
    kept: Files = {}
    keys: set[str] = set()
    for path, data in files.items():
        if _META.fullmatch(path):
            kept[path] = _metadata(data, instance, keys)
        elif _NETWORK.fullmatch(path):
            kept[path] = canonical_json(_document(data))
        elif path.startswith("openstack/") and _USER_DATA.fullmatch(path):
            kept[path] = data
        elif path.startswith("openstack/content/"):
            raise Denied(
                EVENT + ".content", "a file is injected, which is not pinned"
            )
    digest = config_drive.pinned_digest(user_data, keys)
    if not all(_listed(digest, entries) for entries in pinning):
        raise Denied(
            EVENT + ".pinned",
            "the launch policy does not list these user-data and SSH keys",
        )
    return kept


def _user_data(
    files: Mapping[str, bytes], policies: tuple[LaunchPolicy, ...]
) -> bytes:
    """Step 3; empty where there is none."""
    found = {
        data for path, data in files.items() if _USER_DATA.fullmatch(path)
    }
    if not found:
        return b""
    if len(found) > 1:
        raise Denied(EVENT + ".user-data", "there are several user-data")
    (data,) = found
    digest = config_drive.user_data_digest(data)
    if len(data) > config_drive.MAX_USER_DATA or not all(
        _listed(digest, policy.user_data) for policy in policies
    ):
        raise Denied(
            EVENT + ".user-data", "the launch policy lists no such user-data"
        )
    return data


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = parse_json(data)
    except InputError as exc:
        raise Denied(EVENT + ".content", "not JSON") from exc
    if not isinstance(document, dict):
        raise Denied(EVENT + ".content", "not a JSON object")
    return document


def _metadata(data: bytes, instance: str, keys: set[str]) -> bytes:
    """What stays of one meta_data.json; its SSH keys go into ``keys``."""
    document = _document(data)
    if document.get("files"):
        raise Denied(
            EVENT + ".content", "a file is injected, which is not pinned"
        )
    kept = {name: document[name] for name in _KEPT if name in document}
    if kept.get("uuid") != instance:
        raise Denied(EVENT + ".content", "the metadata of another instance")
    try:
        fields = Fields(document, EVENT + ".content")
        named = fields.object("public_keys", {})
        listed = fields.list("keys", _key, 64, ())
        meta = fields.object("meta", {})
        for name, value in {**named, **meta}.items():
            Fields({"value": value, "name": name}, EVENT).text(
                "value", maximum=16384
            )
    except InputError as exc:
        raise Denied(EVENT + ".content", exc.message) from None
    # the launch ticket was for this host only
    meta = {
        name: value
        for name, value in meta.items()
        if not name.startswith("mh_")
    }
    kept["meta"] = meta
    if named:
        kept["public_keys"] = named
        keys.update(named.values())
    if listed:
        kept["keys"] = list(listed)
        keys.update(key["data"] for key in listed)
    return canonical_json(kept)


def _key(value: Any) -> dict[str, str]:
    fields = Fields(value, EVENT + ".content")
    key = {
        name: fields.text(name, maximum=16384)
        for name in ("name", "type", "data")
    }
    fields.end()
    return key


def image(files: Mapping[str, bytes]) -> bytes:
    """An ISO 9660 image with Rock Ridge and Joliet names, label config-2.

    Made in memory: no file of it is ever in the clear.

    :param files: from :func:`compose`.
    :raises Denied: ``agent.config-drive.files``.
    """
    try:
        return _iso(files)
    except pycdlibexception.PyCdlibException as exc:
        raise Denied(
            EVENT + ".files", "no config drive has such names"
        ) from exc


def _iso(files: Mapping[str, bytes]) -> bytes:
    iso = pycdlib.PyCdlib()
    iso.new(
        interchange_level=4,
        joliet=3,
        rock_ridge="1.09",
        vol_ident=LABEL,
        sys_ident="LINUX",
        app_ident_str="MYSTERY HILL",
    )
    made: set[str] = set()
    for path, data in sorted(files.items()):
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/" + "/".join(parts[:depth])
            if folder not in made:
                made.add(folder)
                iso.add_directory(
                    iso_path=folder,
                    rr_name=parts[depth - 1],
                    joliet_path=folder,
                )
        iso.add_fp(
            io.BytesIO(data),
            len(data),
            iso_path="/" + path,
            rr_name=parts[-1],
            joliet_path="/" + path,
        )
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()

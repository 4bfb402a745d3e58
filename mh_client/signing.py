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
"""The tenant's signing key: manifests are signed with it.

A JWK in a file of mode 0600.  It is no data key: whoever has it can sign
manifests for the tenant, but opens nothing.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from mh_client.config import read_private
from mh_core import jose
from mh_core.encoding import parse_json
from mh_core.errors import InputError

EVENT = "client.signing"


def load(path: Path) -> jose.Jwk:
    """:raises InputError: ``client.signing.key``."""
    data = read_private(path, EVENT + ".key")
    document = parse_json(data, 65536)
    if not isinstance(document, dict) or not isinstance(
        document.get("d"), str
    ):
        raise InputError(EVENT + ".key", f"{path} is not a private JWK")
    if jose.public(document)["kty"] != "EC":
        raise InputError(EVENT + ".key", f"{path} is not a P-256 key")
    return document


def load_or_create(path: Path, notice: Callable[[str], None]) -> jose.Jwk:
    """The key of the file; a new one, with a notice, where there is none.

    :raises InputError: ``client.signing.key``.
    """
    if path.exists():
        return load(path)
    key = jose.generate_key()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(fd, "w", encoding="ascii") as stream:
            json.dump(key, stream)
            stream.flush()
            os.fsync(fd)
    except FileExistsError:
        return load(path)
    except OSError as exc:
        raise InputError(
            EVENT + ".key", f"cannot write {path}: {exc.strerror}"
        ) from exc
    notice(
        f"made a new signing key {key['kid']} in {path}; keep a copy: "
        "manifests signed by another key are refused"
    )
    return key

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
"""What the key server's own administrator could see, for the search only."""

from __future__ import annotations

import pathlib
import uuid

from mh_core.image.overlay import overlay_key as derive
from mh_kms import conf as kms_conf
from mh_kms.db import keys
from mh_kms.db.connection import Database, path_of
from mh_kms.key_stores.base import OVERLAY_ROOT
from mh_kms.key_stores.software import SoftwareKeyStore


def overlay_key(
    config: pathlib.Path,
    key_id: str,
    instance: uuid.UUID,
    disk: str,
    luks_uuid: uuid.UUID,
) -> bytes:
    """The key of one overlay, as the server would release it."""
    conf = kms_conf.load(str(config))
    database = Database(path_of(conf.database.connection))
    try:
        key = keys.get(database, key_id)
        root = SoftwareKeyStore(conf).open(
            key_id, OVERLAY_ROOT, key.sealed_root()
        )
        return derive(root.reveal(), instance, disk, luks_uuid)
    finally:
        database.close()

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
"""The cloud's key manager, as nova-compute asks for it through castellan.

A folder below nova's ``state_path``, so that a test sees what it was asked:
``[key_manager] backend = tests.minicloud.key_manager.FolderKeyManager``.
"""

from __future__ import annotations

import pathlib
import typing
import uuid

from castellan.common import exception  # type: ignore[import-untyped]
from castellan.common.objects import (  # type: ignore[import-untyped]
    passphrase,
)
from castellan.key_manager import (  # type: ignore[import-untyped]
    key_manager,
)

BACKEND = f"{__name__}.FolderKeyManager"
FOLDER = "key-manager"


class FolderKeyManager(key_manager.KeyManager):  # type: ignore[misc]
    """Passphrases only; whoever asks may have them."""

    def __init__(self, configuration: typing.Any) -> None:
        self._folder = pathlib.Path(configuration.state_path) / FOLDER
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def store(
        self,
        context: typing.Any,
        managed_object: typing.Any,
        expiration: str | None = None,
        **_more: typing.Any,
    ) -> str:
        name = str(uuid.uuid4())
        (self._folder / name).write_bytes(managed_object.get_encoded())
        return name

    def get(
        self,
        context: typing.Any,
        managed_object_id: str,
        metadata_only: bool = False,
        **_more: typing.Any,
    ) -> typing.Any:
        try:
            data = (self._folder / managed_object_id).read_bytes()
        except FileNotFoundError as exc:
            raise exception.ManagedObjectNotFoundError(
                uuid=managed_object_id
            ) from exc
        return passphrase.Passphrase(data, id=managed_object_id)

    def delete(
        self,
        context: typing.Any,
        managed_object_id: str,
        force: bool = False,
        **_more: typing.Any,
    ) -> None:
        try:
            (self._folder / managed_object_id).unlink()
        except FileNotFoundError as exc:
            raise exception.ManagedObjectNotFoundError(
                uuid=managed_object_id
            ) from exc

    def _none(self, *_args: typing.Any, **_more: typing.Any) -> typing.Any:
        raise NotImplementedError

    create_key = create_key_pair = add_consumer = remove_consumer = _none

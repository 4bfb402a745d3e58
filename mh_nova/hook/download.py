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
"""Fetching the ciphertext: nova's own download, less one hash of it.

glanceclient compares what it receives with whatever digest Glance answers:
one pass of SHA-512 over the whole image, on the word of the party that sent
it. For our images the agent hashes the file itself and holds it against the
tenant's manifest, so that pass proves nothing and is left out. Image
signatures that nova is told to verify are verified as ever.
"""

from typing import Any

from nova.compute import utils as compute_utils
from nova.image import glance
from oslo_utils import fileutils


class Unhashed:
    """A client of nova's whose downloads are not hashed by glanceclient."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def call(
        self,
        context: Any,
        version: int,
        method: str,
        controller: str | None = None,
        args: Any = None,
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if method == "data":
            kwargs = {**(kwargs or {}), "do_checksum": False}
        return self._client.call(
            context,
            version,
            method,
            controller=controller,
            args=args,
            kwargs=kwargs,
        )


def fetch(context: Any, image: str, path: str, trusted_certs: Any) -> None:
    """As ``nova.virt.images.fetch``; nothing is left where it fails.

    :raises nova.exception.NovaException: as nova's own.
    :raises OSError: the file cannot be written, the transfer broke.
    """
    service = glance.get_default_image_service()
    service._client = Unhashed(service._client)
    with (
        fileutils.remove_path_on_error(path),
        compute_utils.disk_ops_semaphore,
    ):
        service.download(
            context, image, dst_path=path, trusted_certs=trusted_certs
        )

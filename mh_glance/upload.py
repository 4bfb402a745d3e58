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
"""Upload of an encrypted image to Glance, as an ordinary tenant.

Glance is somebody else's: what it answers about the image is compared, not
believed; the signed manifest is what hosts go by.
"""

import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from mh_core.errors import Conflict, MHError, NotFound, VerificationError
from mh_glance.encrypt import Ciphertext
from mh_glance.progress import Progress

EVENT = "client.upload"


class ImageApi(Protocol):
    """An adapter to the image endpoint, as keystoneauth1 makes them.

    ``openstack.image.v2._proxy.Proxy`` is one; paths are relative to
    ``/v2``.
    """

    def get(self, url: str, **kwargs: Any) -> Any: ...

    def post(self, url: str, **kwargs: Any) -> Any: ...

    def put(self, url: str, **kwargs: Any) -> Any: ...

    def delete(self, url: str, **kwargs: Any) -> Any: ...


class _Body:
    """A file of known length, read in pieces, that reports progress."""

    def __init__(self, path: str, size: int, progress: Progress) -> None:
        self._file = open(path, "rb")
        self._size = size
        self._done = 0
        self._progress = progress

    def __len__(self) -> int:
        return self._size

    def read(self, length: int = -1) -> bytes:
        left = self._size - self._done
        if length is None or length < 0 or length > left:
            length = left
        data = self._file.read(min(length, 1 << 20))
        self._done += len(data)
        self._progress.update(self._done, self._size)
        return data

    def close(self) -> None:
        self._file.close()


def _checked(response: Any, what: str) -> Any:
    code = int(response.status_code)
    if code < 400:
        return response
    kinds = {404: NotFound, 409: Conflict}
    text = " ".join(str(response.text).split())[:200]
    raise kinds.get(code, MHError)(
        EVENT + "." + what, f"the image service answered {code}: {text}"
    )


def get_image(api: ImageApi, image: str) -> dict[str, Any]:
    """A Glance image document, by id or by a name that is used once.

    :raises NotFound: ``client.upload.find``.
    :raises Conflict: ``client.upload.find``: several of that name.
    :raises VerificationError: ``client.upload.another``: not that image.
    """
    response = api.get(f"/images/{image}", raise_exc=False)
    if response.status_code == 200:
        return _asked(dict(response.json()), image)
    response = _checked(
        api.get("/images", params={"name": image}, raise_exc=False), "find"
    )
    found = response.json().get("images", [])
    if not found:
        raise NotFound(EVENT + ".find", f"no image {image!r}")
    if len(found) > 1:
        raise Conflict(EVENT + ".find", f"several images named {image!r}")
    return _asked(dict(found[0]), image)


def _asked(document: dict[str, Any], image: str) -> dict[str, Any]:
    """The image asked for: not an older one that is signed as well."""
    try:
        named = str(uuid.UUID(image)) != image
    except ValueError:
        named = True
    if document.get("id") != image and not (
        named and document.get("name") == image
    ):
        raise VerificationError(
            EVENT + ".another",
            f"asked for {image!r}, the image service shows another",
        )
    return document


def upload(
    api: ImageApi,
    image_id: str,
    name: str,
    ciphertext: Ciphertext,
    properties: Mapping[str, str],
    progress: Progress,
    visibility: str = "private",
) -> dict[str, Any]:
    """Create the image, send its bytes, compare what arrived.

    On any failure the image is deleted again.

    :returns: the Glance image document, ``active``.
    :raises MHError: ``client.upload.create|data|status``.
    :raises VerificationError: ``client.upload.digest``.
    """
    document = {
        "id": image_id,
        "name": name,
        "disk_format": ciphertext.disk_format,
        "container_format": ciphertext.container_format,
        "visibility": visibility,
        **properties,
    }
    _checked(api.post("/images", json=document, raise_exc=False), "create")
    try:
        body = _Body(ciphertext.path, ciphertext.size, progress)
        try:
            _checked(
                api.put(
                    f"/images/{image_id}/file",
                    data=body,
                    headers={"Content-Type": "application/octet-stream"},
                    raise_exc=False,
                ),
                "data",
            )
        finally:
            body.close()
        progress.finish()
        found = dict(
            _checked(
                api.get(f"/images/{image_id}", raise_exc=False), "status"
            ).json()
        )
        _compare(found, ciphertext, properties)
    except BaseException:
        api.delete(f"/images/{image_id}", raise_exc=False)
        raise
    return found


def _compare(
    found: Mapping[str, Any],
    ciphertext: Ciphertext,
    properties: Mapping[str, str],
) -> None:
    if found.get("status") != "active":
        raise MHError(
            EVENT + ".status", f"the image is {found.get('status')!r}"
        )
    digest = {
        "sha256": ciphertext.sha256,
        "sha512": ciphertext.sha512,
    }.get(str(found.get("os_hash_algo")), found.get("os_hash_value"))
    if (
        found.get("size") != ciphertext.size
        or found.get("os_hash_value") != digest
    ):
        raise VerificationError(
            EVENT + ".digest", "the image service stored other bytes"
        )
    for name, value in properties.items():
        if found.get(name) != value:
            raise VerificationError(
                EVENT + ".properties",
                f"the image service did not keep property {name!r}",
            )

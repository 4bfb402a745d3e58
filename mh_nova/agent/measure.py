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
"""The measuring decision: may this image run?

Steps, with the id each refuses by:

1. the manifest is signed by one of the keys in the release
   (``agent.measure.manifest-signature``);
2. its digest is one the release allows, and the one that was asked for
   (``agent.measure.manifest-digest``);
3. it is the manifest of this image, under this key
   (``agent.measure.image``);
4. size and SHA-256 of the disk's file, as the agent hashed it, are the
   manifest's (``agent.measure.size``, ``agent.measure.digest``);
5. its headers are of the allowed kind, its virtual size is the manifest's
   (``agent.measure.header``), the released key opens it
   (``agent.measure.dek``), and what is inside is a disk, not another image
   file (``agent.measure.content``);
6. every measurer of this host agrees, and one of them answers for what the
   manifest asks to be measured (``agent.measure.measurer``).
"""

import hmac
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mh_core import manifest as manifest_module
from mh_core.errors import Denied, InputError, MHError, VerificationError
from mh_core.image import disk, luks1
from mh_core.manifest import DRIVERS, Manifest
from mh_core.payload import ReleasePayload
from mh_core.request import KeyRequest
from mh_core.secret import Secret
from mh_nova.agent.measurers.base import Blocks, HashedFile, Measurer
from mh_reader.export import encrypted

EVENT = "agent.measure"
PASSED = EVENT + ".passed"


@dataclass(frozen=True)
class Measured:
    """What passed.

    :param verdicts: measurer name to its verdict, for the VM report.
    """

    manifest: Manifest
    verdicts: dict[str, str]


def verify_manifest(
    payload: ReleasePayload, token: str, request: KeyRequest
) -> Manifest:
    """Steps 1 to 3; parameters and errors as :func:`measure`."""
    # 1
    try:
        manifest = Manifest.verify(token, payload.manifest_keys)
    except (InputError, VerificationError) as exc:
        raise Denied(
            EVENT + ".manifest-signature",
            "the manifest is not signed by a key the key server names "
            f"({exc.event})",
        ) from exc
    # 2
    digest = manifest_module.digest(token)
    if digest not in payload.manifest_digests or not hmac.compare_digest(
        digest, request.manifest_digest
    ):
        raise Denied(
            EVENT + ".manifest-digest",
            "the key's policy does not list this manifest",
        )
    # 3
    if (
        manifest.image != request.image
        or manifest.key_id != request.key_id
        or manifest.key_id != payload.key_id
    ):
        raise Denied(
            EVENT + ".image", "the manifest is of another image or key"
        )
    return manifest


def measure(
    payload: ReleasePayload,
    token: str,
    request: KeyRequest,
    image: HashedFile,
    measurers: Mapping[str, Measurer],
) -> Measured:
    """
    :param payload: from :func:`mh_nova.agent.release.open_release`.
    :param token: the manifest's compact JWS, as nova gave it.
    :param request: what the release answers.
    :param image: the file, hashed by the agent.
    :raises Denied: as in the module's list; every other error is a refusal
        as well.
    """
    # 1, 2, 3
    manifest = verify_manifest(payload, token, request)
    # 4
    if image.size != manifest.disk_size:
        raise Denied(
            EVENT + ".size",
            f"the image has {image.size} bytes, its manifest says "
            f"{manifest.disk_size}",
        )
    if not hmac.compare_digest(image.sha256, manifest.disk_sha256):
        raise Denied(
            EVENT + ".digest", "the image is not the one its owner signed"
        )
    # 5
    _headers(manifest, payload, image)
    # 6
    return Measured(manifest, _ask(manifest, payload, image, measurers))


def _ask(
    manifest: Manifest,
    payload: ReleasePayload,
    image: HashedFile,
    measurers: Mapping[str, Measurer],
) -> dict[str, str]:
    """Step 6."""

    @contextmanager
    def opener() -> Iterator[Blocks]:
        # the key goes to the tool that opens the image, and no further
        key = Secret(luks1.passphrase(payload.dek.reveal()))
        driver = DRIVERS[manifest.format]
        with encrypted(image.fd, driver, key) as blocks:
            yield blocks

    verdicts: dict[str, str] = {}
    answered: set[str] = set()
    for name, measurer in measurers.items():
        try:
            found = measurer.measure(manifest, image, opener)
        except MHError as exc:
            raise Denied(
                EVENT + ".measurer", f"{name}: {exc.message} ({exc.event})"
            ) from exc
        for module, verdict in found.items():
            verdicts[f"{name}:{module}" if module else name] = verdict
        if found:
            answered |= measurer.answers
    if manifest.measure not in answered:
        raise Denied(
            EVENT + ".measurer",
            f"no measurer of this host measures {manifest.measure!r}",
        )
    return verdicts


def without_base(
    payload: ReleasePayload, token: str, request: KeyRequest
) -> Measured:
    """For an instance none of whose disks has a base any more.

    Its content is the guest's own, held to the instance by the overlay key
    alone; it came from a base that was measured when it was flattened.

    :raises Denied: steps 1 to 3.
    """
    return Measured(
        verify_manifest(payload, token, request), {"flattened": "ok"}
    )


def _headers(
    manifest: Manifest, payload: ReleasePayload, image: HashedFile
) -> None:
    """Step 5, through the descriptor that was hashed."""
    try:
        found = disk.check(
            image.fd, DRIVERS[manifest.format], manifest.virtual_size
        )
    except (InputError, VerificationError) as exc:
        raise Denied(
            EVENT + ".header", f"{exc.message} ({exc.event})"
        ) from exc
    try:
        master = disk.unlock(
            image.fd, found, luks1.passphrase(payload.dek.reveal())
        )
    except (InputError, VerificationError) as exc:
        raise Denied(
            EVENT + ".dek", f"the released key does not open it ({exc.event})"
        ) from None
    try:
        disk.check_content(image.fd, found, master)
    except (InputError, VerificationError) as exc:
        raise Denied(
            EVENT + ".content", f"{exc.message} ({exc.event})"
        ) from exc

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
"""Trusted images: encrypted, signed and registered here, then uploaded."""

import hashlib
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from mh_client import signing, snapshots
from mh_client.attest import Attest
from mh_client.config import Config
from mh_client.kms import Key, Kms
from mh_client.snapshots import Provenance
from mh_core import jose
from mh_core import manifest as manifests
from mh_core.errors import (
    InputError,
    MHError,
    NotFound,
    Unavailable,
    VerificationError,
)
from mh_core.launch_policy import LaunchPolicy
from mh_core.manifest import Manifest
from mh_glance import encrypt, ova, upload
from mh_glance.measure import Question, measure
from mh_glance.progress import Bar
from mh_glance.properties import ImageProperties

EVENT = "client.image"


@dataclass(frozen=True)
class NewImage:
    """What a tenant asks for.

    :param file: path of the plain image.
    :param form: its format; by default its magic bytes decide.
    :param compat: hosts use the seed's bare-AK request.
    :param kind: of the encrypted disk: qcow2, or luks for raw LUKS1.
    :param ova: the disk is put into an OVA; only qcow2.
    :param question: what hosts are to measure of it.
    """

    name: str
    file: str
    key: str
    form: str | None = None
    compat: bool = False
    kind: str = "qcow2"
    ova: bool = False
    visibility: str = "private"
    launch_policy: LaunchPolicy = field(default_factory=LaunchPolicy)
    question: Question = Question()


@dataclass(frozen=True)
class TrustedImage:
    """An image whose manifest was verified with the tenant's own key, or
    with that of a snapshot by an attested host.

    :param digest: SHA-256 (hex) of the manifest's JWS.
    :param provenance: of a snapshot.
    """

    document: dict[str, Any]
    properties: ImageProperties
    manifest: Manifest
    digest: str
    provenance: Provenance | None = None

    @property
    def id(self) -> str:
        return str(self.document["id"])


def verify(
    document: dict[str, Any], own_key: jose.Jwk, origin: str
) -> TrustedImage:
    """Hold a Glance image against the tenant's own manifest.

    1. the properties are complete;
    2. the manifest was signed by the tenant's own key;
    3. it is this image's, key's and size's;
    4. the key URL is the tenant's key server's;
    5. size and digest that Glance names are the manifest's.

    :raises InputError: ``client.image.properties``, ``core.manifest``.
    :raises VerificationError: ``core.jose.signature``,
        ``client.image.manifest|key-url|digest``.
    """
    # 1
    properties = ImageProperties.parse(document)
    # 2
    manifest = Manifest.verify(properties.manifest, [own_key])
    # 3
    if (
        manifest.image != document.get("id")
        or manifest.key_id != properties.key_id
        or manifest.virtual_size != properties.decrypt_size
    ):
        raise VerificationError(
            EVENT + ".manifest", "the manifest is of another image"
        )
    # 4
    key_id = properties.key_id
    if properties.key_url not in (
        f"{origin}/v1/keys/{key_id}",
        f"{origin}/data-encryption-key/request/{key_id}",
    ):
        raise VerificationError(
            EVENT + ".key-url", "the key URL is not your key server's"
        )
    # 5
    stored = {"sha256": manifest.sha256, "sha512": manifest.sha512}.get(
        str(document.get("os_hash_algo")), document.get("os_hash_value")
    )
    if (
        document.get("size") != manifest.size
        or document.get("os_hash_value") != stored
    ):
        raise VerificationError(
            EVENT + ".digest", "the stored bytes are not the manifest's"
        )
    return TrustedImage(
        document, properties, manifest, manifests.digest(properties.manifest)
    )


def file_digest(path: str) -> str:
    """SHA-256 (hex) of a small file, e.g. user-data.

    :raises InputError: ``client.image.user-data``.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as exc:
        raise InputError(
            EVENT + ".user-data", f"cannot read {path}: {exc.strerror}"
        ) from exc


def _key_url(key: Key, new: NewImage) -> str:
    return key.compat_url if new.compat else key.url


class Images:
    """
    :param api: makes the adapter of Glance, when it is first needed.
    """

    def __init__(
        self,
        config: Config,
        kms: Kms,
        api: Callable[[], upload.ImageApi],
        notice: Callable[[str], None],
        stream: TextIO | None = None,
        attest: Callable[[], Attest] | None = None,
    ) -> None:
        self._attest = attest
        self._config = config
        self._kms = kms
        self._api = api
        self._notice = notice
        self._stream = stream or sys.stderr

    def create(self, new: NewImage) -> TrustedImage:
        """Encrypt, sign, register, upload; undone where a step fails.

        1. the key comes wrapped to a key pair that lives for this call;
        2. only ciphertext is written;
        3. what hosts are to measure is measured, the manifest signed, and
           registered at the key server;
        4. properties and ciphertext go to Glance, and are compared.
        """
        if new.ova and new.kind != "qcow2":
            raise InputError(EVENT + ".kind", "an OVA of ours holds a qcow2")
        # 1
        own = signing.load_or_create(
            self._config.signing_key_file, self._notice
        )
        key = self._kms.find(new.key)
        self._check_key(key, own, new)
        api = self._api()
        with encrypt.work_dir(new.file) as folder:
            # 2
            ciphertext = self._encrypt(new, key, folder)
            # 3
            manifest = Manifest(
                image=str(uuid.uuid4()),
                key_id=key.id,
                format=ciphertext.format,
                size=ciphertext.size,
                virtual_size=ciphertext.virtual_size,
                sha256=ciphertext.sha256,
                sha512=ciphertext.sha512,
                launch_policy=new.launch_policy,
                container=ciphertext.container,
                measure=new.question.measure,
                modules=measure(
                    new.file,
                    new.form,
                    new.question,
                    lambda: self._kms.deliver(key.id),
                ),
            )
            token = manifest.sign(own)
            properties = ImageProperties(
                key_id=key.id,
                decrypt_size=manifest.virtual_size,
                key_url=_key_url(key, new),
                manifest=token,
            )
            asked = properties.to_dict()
            digest = manifests.digest(token)
            if self._kms.add_manifest(key.id, token) != digest:
                raise VerificationError(
                    EVENT + ".manifest",
                    "the key server registered another manifest",
                )
            # 4
            try:
                document = upload.upload(
                    api,
                    manifest.image,
                    new.name,
                    ciphertext,
                    asked,
                    Bar(self._stream, "upload"),
                    new.visibility,
                )
            except BaseException:
                self._forget(key.id, digest)
                raise
        return TrustedImage(document, properties, manifest, digest)

    def _encrypt(
        self, new: NewImage, key: Key, folder: str
    ) -> encrypt.Ciphertext:
        hashing = Bar(self._stream, "hash")
        if new.form == "luks":
            if new.ova or new.kind != "luks":
                raise InputError(
                    EVENT + ".kind",
                    "an image that is LUKS1 already is uploaded as it is: "
                    "ask for --disk-format raw, and no OVA",
                )
            return encrypt.adopt(new.file, self._kms.deliver(key.id), hashing)
        made = encrypt.encrypt(
            new.file,
            f"{folder}/image",
            self._kms.deliver(key.id),
            form=new.form,
            kind=new.kind,
            convert_progress=Bar(self._stream, "encrypt"),
            hash_progress=hashing,
        )
        if made.note:
            self._notice(made.note)
        if not new.ova:
            return made
        return ova.wrap(
            made,
            f"{folder}/image.ova",
            new.name,
            _key_url(key, new),
            Bar(self._stream, "wrap"),
        )

    def _check_key(self, key: Key, own: jose.Jwk, new: NewImage) -> None:
        listed = key.policy.get("manifest_keys")
        if not isinstance(listed, list) or jose.public(own) not in listed:
            raise VerificationError(
                EVENT + ".signing-key",
                f"key {key.name!r} accepts manifests of another signing key "
                f"than {self._config.signing_key_file}",
            )
        if new.compat and key.policy.get("compat") is not True:
            raise InputError(
                EVENT + ".compat",
                f"key {key.name!r} does not allow the bare-AK request; run "
                f"'openstack trusted key set --compat {key.name}' first",
            )

    def _forget(self, key_id: str, digest: str) -> None:
        try:
            self._kms.delete_manifest(key_id, digest)
        except MHError as exc:
            self._notice(f"manifest {digest} stays registered: {exc}")

    def show(self, name: str) -> TrustedImage:
        """Find and :func:`verify` an image; one that a host made, with the
        key that its provenance names.

        :raises MHError: as both.
        """
        own = signing.load(self._config.signing_key_file)
        document = upload.get_image(self._api(), name)
        origin = self._kms.origin()
        try:
            return verify(document, own, origin)
        except VerificationError as exc:
            if exc.event != "core.jose.signature":
                raise
            try:
                made = self.provenance(ImageProperties.parse(document).key_id)
            except NotFound:
                # not a snapshot either
                raise exc from None
        found = verify(document, made.claims.signer, origin)
        if found.digest != made.claims.manifest_digest:
            raise VerificationError(
                EVENT + ".manifest", "the manifest is of another snapshot"
            )
        return replace(found, provenance=made)

    def from_provenance(self, made: Provenance) -> TrustedImage:
        """A snapshot whose image is gone, as its signed manifest has it.

        :raises MHError: ``core.manifest``, ``core.jose.signature``.
        """
        claims = made.claims
        manifest = Manifest.verify(made.manifest, [claims.signer])
        properties = ImageProperties(
            key_id=claims.key_id,
            decrypt_size=manifest.virtual_size,
            key_url=f"{claims.kms_origin}/v1/keys/{claims.key_id}",
            manifest=made.manifest,
        )
        return TrustedImage(
            {"id": claims.image, "name": "", "status": "deleted"},
            properties,
            manifest,
            claims.manifest_digest,
            made,
        )

    def provenance(self, key_id: str) -> Provenance:
        """What the key of a snapshot comes from, verified.

        :raises NotFound: the key server's event: no snapshot's.
        :raises MHError: ``client.snapshot.*``, ``client.attest.*``.
        """
        document = self._kms.snapshot(key_id)
        if self._attest is None:
            raise Unavailable(
                "client.config.pin", "no attestation server is configured"
            )
        return snapshots.verify(
            document,
            key_id,
            authority=self._attest().authority(),
            kms_origin=self._kms.origin(),
        )

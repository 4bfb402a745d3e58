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
"""The TPM of this host: the only module that loads tpm2_pytss.

Key hierarchy (TPM 2.0 Part 1, section 14; Part 3 for each command):

* EK: RSA-2048 (template L-1) or P-384 (H-3), whichever has a certificate;
* AK: P-256 restricted signing primary in the endorsement hierarchy, the same
  at every boot, so that the counters in what it signs are not obfuscated;
* bind key: P-256 ECDH primary in the NULL hierarchy, new at every boot, held
  by PolicyPCR to the PCR values it was made under;
* salt key: P-256 storage primary in the NULL hierarchy, certified by the AK
  before use; sessions that carry a shared secret are salted to it.

Nothing stays loaded between commands, under one lock of this process and one
of the machine: a TPM without a resource manager has three slots.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

# The library's own log prints every refused command to standard error.
os.environ.setdefault("TSS2_LOG", "all+none")

import tpm2_pytss as tss
from tpm2_pytss import utils

from mh_core.errors import VerificationError
from mh_core.evidence import BOUND
from mh_core.tpm.policy import policy_pcr
from mh_core.tpm.public import Public
from mh_core.tpm.quote import LABEL_BIND, extra_data, verify_certify
from mh_nova.agent import response
from mh_nova.agent.evidence import BindKey, Identity, Quote
from mh_nova.agent.lock import MachineLock

_OA, _HC = tss.TPMA_OBJECT, tss.TPM2_HC
_MADE_HERE = _OA.FIXEDTPM | _OA.FIXEDPARENT | _OA.SENSITIVEDATAORIGIN
_OPEN = _MADE_HERE | _OA.USERWITHAUTH | _OA.RESTRICTED | _OA.NODA
# noDA: an unclean stop must not count as a failed try (Part 1, 19.8)
_AK = _OPEN | _OA.SIGN_ENCRYPT
_BIND = _MADE_HERE | _OA.DECRYPT | _OA.NODA
_SALT = _OPEN | _OA.DECRYPT
_TRIES = 5
_LABEL_SALT = "mh/certify/salt/v1"


class Tpm:
    """
    :param tcti: e.g. ``device:/dev/tpmrm0``.
    :param lock_file: advisory lock shared by all of our processes.
    """

    def __init__(self, tcti: str, lock_file: str) -> None:
        self._tcti = tcti
        self._lock = MachineLock(lock_file)
        self._cleared = False
        self._ak: tuple[Public, tss.TPMS_CONTEXT] | None = None
        self._salt: tss.TPMS_CONTEXT | None = None

    # -- plumbing --------------------------------------------------------

    @contextlib.contextmanager
    def _session(self) -> Iterator[tss.ESAPI]:
        """The TPM, ours alone; every failure of it is one of our errors."""
        with self._lock.held():
            try:
                with tss.ESAPI(self._tcti) as tpm:
                    if not self._cleared:
                        _clear(tpm)
                        self._cleared = True
                    yield tpm
            except tss.TSS2_Exception as exc:
                raise response.unavailable(int(exc.rc)) from exc

    @staticmethod
    @contextlib.contextmanager
    def _loaded(
        tpm: tss.ESAPI, context: tss.TPMS_CONTEXT
    ) -> Iterator[tss.ESYS_TR]:
        handle = tpm.context_load(context)
        try:
            yield handle
        finally:
            tpm.flush_context(handle)

    def _lives(self, tpm: tss.ESAPI, context: tss.TPMS_CONTEXT) -> bool:
        with contextlib.suppress(tss.TSS2_Exception):
            with self._loaded(tpm, context):
                return True
        return False

    @staticmethod
    def _primary(
        tpm: tss.ESAPI,
        hierarchy: tss.ESYS_TR,
        kind: str,
        attributes: tss.TPMA_OBJECT,
        policy: bytes = b"",
    ) -> tuple[Public, tss.TPMS_CONTEXT]:
        template = tss.TPMT_PUBLIC.parse(kind, attributes)
        template.authPolicy = tss.TPM2B_DIGEST(policy)
        handle, public, *_ = tpm.create_primary(
            tss.TPM2B_SENSITIVE_CREATE(),
            tss.TPM2B_PUBLIC(publicArea=template),
            hierarchy,
        )
        try:
            parsed = Public.parse(bytes(public.publicArea.marshal()))
            return parsed, tpm.context_save(handle)
        finally:
            tpm.flush_context(handle)

    def _with_ak(self, tpm: tss.ESAPI) -> tuple[Public, tss.TPMS_CONTEXT]:
        """The AK; made again where a restart has made its context stale."""
        if self._ak is not None and self._lives(tpm, self._ak[1]):
            return self._ak
        self._ak = self._primary(
            tpm, tss.ESYS_TR.ENDORSEMENT, "ecc256:ecdsa-sha256:null", _AK
        )
        return self._ak

    def _certify(
        self, tpm: tss.ESAPI, context: tss.TPMS_CONTEXT, label: str
    ) -> tuple[bytes, bytes]:
        ak, ak_context = self._with_ak(tpm)
        extra = tss.TPM2B_DATA(extra_data(label, b"", ak.name))
        with (
            self._loaded(tpm, ak_context) as signer,
            self._loaded(tpm, context) as thing,
        ):
            attest, signature = tpm.certify(
                *(thing, signer, extra),
                tss.TPMT_SIG_SCHEME(scheme=tss.TPM2_ALG.NULL),
            )
            return bytes(attest), bytes(signature.marshal())

    # -- identity and enrolment ------------------------------------------

    def check(self) -> None:
        """:raises Unavailable: ``agent.tpm.unavailable``."""
        with self._session() as tpm:
            tpm.get_random(8)

    def ak(self) -> Public:
        with self._session() as tpm:
            return self._with_ak(tpm)[0]

    def _ek_template(self, tpm: tss.ESAPI) -> tuple[bytes, tss.TPM2B_PUBLIC]:
        for name in ("EK-RSA2048", "H-3", "H-2"):
            with contextlib.suppress(utils.NoSuchIndex):
                read = utils.NVReadEK(tpm)
                certificate, template = utils.create_ek_template(name, read)
                if certificate:
                    return bytes(certificate), template
        raise response.no_certificate()

    def identity(self) -> Identity:
        """:raises Unavailable: also ``agent.tpm.ek-certificate``."""
        with self._session() as tpm:
            certificate, template = self._ek_template(tpm)
            handle, public, *_ = tpm.create_primary(
                tss.TPM2B_SENSITIVE_CREATE(), template, tss.ESYS_TR.ENDORSEMENT
            )
            tpm.flush_context(handle)
            return Identity(
                certificate,
                bytes(public.publicArea.marshal()),
                self._with_ak(tpm)[0].raw,
            )

    def activate(self, credential: bytes, secret: bytes) -> bytes:
        """TPM2_ActivateCredential for EK and AK.

        :param credential: contents of TPM2B_ID_OBJECT.
        :param secret: contents of TPM2B_ENCRYPTED_SECRET.
        :raises VerificationError: ``agent.tpm.credential``.
        """
        with self._session() as tpm:
            _certificate, template = self._ek_template(tpm)
            _ak, context = self._with_ak(tpm)
            ek, *_ = tpm.create_primary(
                tss.TPM2B_SENSITIVE_CREATE(), template, tss.ESYS_TR.ENDORSEMENT
            )
            try:
                with self._loaded(tpm, context) as ak:
                    return self._activate(
                        *(tpm, ak, ek, template.publicArea),
                        tss.TPM2B_ID_OBJECT(credential),
                        tss.TPM2B_ENCRYPTED_SECRET(secret),
                    )
            except (tss.TSS2_Exception, ValueError) as exc:
                raise VerificationError(
                    "agent.tpm.credential",
                    "the credential is not for this TPM and AK",
                ) from exc
            finally:
                tpm.flush_context(ek)

    @staticmethod
    def _activate(
        tpm: tss.ESAPI,
        ak: tss.ESYS_TR,
        ek: tss.ESYS_TR,
        template: tss.TPMT_PUBLIC,
        *sealed: Any,
    ) -> bytes:
        if template.objectAttributes & _OA.USERWITHAUTH:  # high range
            return bytes(tpm.activate_credential(ak, ek, *sealed))
        session = _policy_session(tpm)
        try:
            tpm.policy_secret(
                tss.ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0
            )
            return bytes(
                tpm.activate_credential(ak, ek, *sealed, session2=session)
            )
        finally:
            tpm.flush_context(session)

    # -- PCRs and quotes -------------------------------------------------

    @staticmethod
    def _read(tpm: tss.ESAPI, selection: Collection[int]) -> dict[int, bytes]:
        """PCR values, at most eight a command, all of one moment."""
        wanted = sorted(selection)
        for _try in range(_TRIES):
            out: dict[int, bytes] = {}
            counters = set()
            for begin in range(0, len(wanted), 8):
                part = wanted[begin : begin + 8]
                counter, _selected, values = tpm.pcr_read(_select(part))
                counters.add(int(counter))
                out.update(zip(part, map(bytes, values), strict=True))
            if len(counters) == 1:
                return out
        raise response.restless()

    def quote(self, extra: bytes, selection: Collection[int]) -> Quote:
        """Quote ``selection`` (SHA-256 bank) by the AK.

        :param extra: 32 bytes, always the result of
            :func:`mh_core.tpm.quote.extra_data`; no caller outside the
            prover passes anything here.
        """
        with self._session() as tpm:
            _ak, context = self._with_ak(tpm)
            before = self._read(tpm, selection)
            for _try in range(_TRIES):
                with self._loaded(tpm, context) as ak:
                    attest, signature = tpm.quote(
                        ak,
                        _select(selection),
                        tss.TPM2B_DATA(extra),
                        tss.TPMT_SIG_SCHEME(scheme=tss.TPM2_ALG.NULL),
                    )
                    out = bytes(attest), bytes(signature.marshal())
                after = self._read(tpm, selection)
                if after == before:
                    return Quote(*out, after)
                before = after
            raise response.restless()

    # -- bind key --------------------------------------------------------

    def make_bind(self) -> BindKey:
        """The bind key for the PCR values of now, certified by the AK."""
        with self._session() as tpm:
            pcrs = self._read(tpm, BOUND)
            public, context = self._primary(
                *(tpm, tss.ESYS_TR.NULL, "ecc256:ecdh-sha256:null", _BIND),
                policy=policy_pcr(pcrs),
            )
            attest, signature = self._certify(tpm, context, LABEL_BIND)
            return BindKey(public, attest, signature, pcrs, context)

    def holds(self, bind: BindKey) -> bool:
        """Is the key of this boot, and are its PCRs as it was made?"""
        with self._session() as tpm:
            alive = self._lives(tpm, bind.context)
            return alive and self._read(tpm, BOUND) == bind.pcrs

    def _salt_context(self, tpm: tss.ESAPI) -> tss.TPMS_CONTEXT:
        """The salt key, believed only after the AK has certified it."""
        if self._salt is not None and self._lives(tpm, self._salt):
            return self._salt
        public, context = self._primary(
            tpm, tss.ESYS_TR.NULL, "ecc256:aes128cfb", _SALT
        )
        attest, signature = self._certify(tpm, context, _LABEL_SALT)
        ak = self._with_ak(tpm)[0]
        extra = extra_data(_LABEL_SALT, b"", ak.name)
        verify_certify(ak, attest, signature, extra, public)
        self._salt = context
        return context

    def zgen(self, bind: BindKey, x: bytes, y: bytes) -> bytes:
        """TPM2_ECDH_ZGen under PolicyPCR, answer encrypted on the bus.

        :param x: of the sender's ephemeral point, 32 bytes; so ``y``.
        :returns: x coordinate of the shared point, 32 bytes.
        :raises VerificationError: ``agent.tpm.policy``: the PCRs are not
            those that the key is bound to; ``agent.tpm.boot``: the key is of
            another boot; ``agent.tpm.point``.
        """
        point = tss.TPM2B_ECC_POINT(tss.TPMS_ECC_POINT(x=x, y=y))

        def run(tpm: tss.ESAPI, key: tss.ESYS_TR, **sessions: Any) -> bytes:
            out = tpm.ecdh_zgen(key, point, **sessions)
            # ``out`` is kept in a variable: its members live inside it
            return bytes(out.point.x).rjust(32, b"\0")

        return self._use(bind, run)

    def rsa_decrypt(self, bind: BindKey, ciphertext: bytes) -> bytes:
        """TPM2_RSA_Decrypt, for RSA bind keys (RSA-OAEP-256)."""

        def run(tpm: tss.ESAPI, key: tss.ESYS_TR, **sessions: Any) -> bytes:
            scheme = tss.TPMT_RSA_DECRYPT(scheme=tss.TPM2_ALG.NULL)
            sealed = tss.TPM2B_PUBLIC_KEY_RSA(ciphertext)
            return bytes(
                tpm.rsa_decrypt(key, sealed, scheme, label=b"", **sessions)
            )

        return self._use(bind, run)

    def _use(self, bind: BindKey, run: Callable[..., bytes]) -> bytes:
        with self._session() as tpm:
            for _try in range(_TRIES):
                try:
                    return self._use_once(tpm, bind, run)
                except tss.TSS2_Exception as exc:
                    if response.pcr_changed(int(exc.rc)):
                        continue
                    raise response.refusal(int(exc.rc)) from exc
        raise response.restless()

    def _use_once(
        self, tpm: tss.ESAPI, bind: BindKey, run: Callable[..., bytes]
    ) -> bytes:
        with contextlib.ExitStack() as stack:
            with self._loaded(tpm, self._salt_context(tpm)) as salt:
                secure = _salted_session(tpm, salt)
            stack.callback(tpm.flush_context, secure)
            policy = _policy_session(tpm)
            stack.callback(tpm.flush_context, policy)
            tpm.policy_pcr(policy, tss.TPM2B_DIGEST(), _select(bind.pcrs))
            try:
                key = tpm.context_load(bind.context)
            except tss.TSS2_Exception as exc:
                raise VerificationError(
                    "agent.tpm.boot", "the bind key is of another boot"
                ) from exc
            stack.callback(tpm.flush_context, key)
            return run(tpm, key, session1=policy, session2=secure)


def _select(selection: Collection[int]) -> tss.TPML_PCR_SELECTION:
    return tss.TPML_PCR_SELECTION.parse(
        "sha256:" + ",".join(str(i) for i in sorted(selection))
    )


def _policy_session(tpm: tss.ESAPI) -> tss.ESYS_TR:
    return tpm.start_auth_session(
        *(tss.ESYS_TR.NONE, tss.ESYS_TR.NONE, tss.TPM2_SE.POLICY),
        *(tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL), tss.TPM2_ALG.SHA256),
    )


def _salted_session(tpm: tss.ESAPI, salt: tss.ESYS_TR) -> tss.ESYS_TR:
    session = tpm.start_auth_session(
        *(salt, tss.ESYS_TR.NONE, tss.TPM2_SE.HMAC),
        *(tss.TPMT_SYM_DEF.parse("aes128cfb"), tss.TPM2_ALG.SHA256),
    )
    flags = tss.TPMA_SESSION
    flags = flags.ENCRYPT | flags.DECRYPT | flags.CONTINUESESSION
    tpm.trsess_set_attributes(session, flags)
    return session


def _clear(tpm: tss.ESAPI) -> None:
    """What one of us that was killed left loaded; a resource manager, where
    there is one, shows nobody what others have."""
    for first in (_HC.TRANSIENT_FIRST, _HC.LOADED_SESSION_FIRST):
        _more, found = tpm.get_capability(tss.TPM2_CAP.HANDLES, first, 16)
        for handle in found.data.handles:
            tpm.flush_context(tpm.tr_from_tpmpublic(handle))

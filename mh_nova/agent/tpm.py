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

Nothing stays loaded between commands: a TPM without a resource manager has
three slots.  Every command runs under one lock in this process and one file
lock for the machine.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

# The library's own log prints every refused command to standard error.
os.environ.setdefault("TSS2_LOG", "all+none")

from tpm2_pytss import (  # noqa: E402
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_SE,
    TPM2B_DATA,
    TPM2B_DIGEST,
    TPM2B_ECC_POINT,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPM2B_PUBLIC_KEY_RSA,
    TPM2B_SENSITIVE_CREATE,
    TPMA_OBJECT,
    TPMA_SESSION,
    TPML_PCR_SELECTION,
    TPMS_CONTEXT,
    TPMS_ECC_POINT,
    TPMT_PUBLIC,
    TPMT_RSA_DECRYPT,
    TPMT_SIG_SCHEME,
    TPMT_SYM_DEF,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
    TSS2_Exception,
)
from tpm2_pytss.utils import (  # noqa: E402
    NoSuchIndex,
    NVReadEK,
    create_ek_template,
)

from mh_core.errors import MHError, Unavailable, VerificationError  # noqa: E402
from mh_core.evidence import BOUND  # noqa: E402
from mh_core.tpm.policy import policy_pcr  # noqa: E402
from mh_core.tpm.public import Public  # noqa: E402
from mh_core.tpm.quote import (  # noqa: E402
    LABEL_BIND,
    extra_data,
    verify_certify,
)

T = TypeVar("T")
_OA = TPMA_OBJECT
_MADE_HERE = _OA.FIXEDTPM | _OA.FIXEDPARENT | _OA.SENSITIVEDATAORIGIN
_OPEN = _MADE_HERE | _OA.USERWITHAUTH | _OA.RESTRICTED | _OA.NODA
# noDA: an unclean stop must not count as a failed try (Part 1, 19.8)
_AK = _OPEN | _OA.SIGN_ENCRYPT
_BIND = _MADE_HERE | _OA.DECRYPT | _OA.NODA
_SALT = _OPEN | _OA.DECRYPT
#: TPM_RC_PCR_CHANGED (Part 2, 6.6.3): another PCR moved under a session.
_PCR_CHANGED = 0x128
#: Format-one codes without handle, session or parameter number.
_POLICY_FAIL, _POINT, _VALUE = 0x9D, 0xA7, 0x84
_TRIES = 5
_LABEL_SALT = "mh/certify/salt/v1"


@dataclass(frozen=True)
class Identity:
    """What the host shows to be enrolled.

    :param ek_certificate: DER.
    :param ek_public: TPMT_PUBLIC.
    :param ak_public: TPMT_PUBLIC.
    """

    ek_certificate: bytes
    ek_public: bytes
    ak_public: bytes


@dataclass(frozen=True)
class BindKey:
    """A bind key and the AK's certification of it.

    :param public: parsed TPMT_PUBLIC; its policy is over ``pcrs``.
    :param attest: TPMS_ATTEST of TPM2_Certify.
    :param signature: TPMT_SIGNATURE.
    """

    public: Public
    attest: bytes
    signature: bytes
    pcrs: dict[int, bytes]
    context: TPMS_CONTEXT


@dataclass(frozen=True)
class Quote:
    """TPM2_Quote's answer and the PCR values it covers."""

    attest: bytes
    signature: bytes
    pcrs: dict[int, bytes]


def _plain(error: TSS2_Exception) -> int:
    """The response code without its handle/session/parameter bits."""
    code = int(error.rc) & 0xFFF
    return code & 0xBF if code & 0x80 else code


class Tpm:
    """
    :param tcti: e.g. ``device:/dev/tpmrm0``.
    :param lock_file: advisory lock shared by all of our processes.
    """

    def __init__(self, tcti: str, lock_file: str) -> None:
        self._tcti = tcti
        self._lock_file = lock_file
        self._lock = threading.RLock()
        self._ak: tuple[Public, TPMS_CONTEXT] | None = None
        self._salt: TPMS_CONTEXT | None = None

    # -- plumbing --------------------------------------------------------

    @contextlib.contextmanager
    def _session(self) -> Iterator[ESAPI]:
        """The TPM, ours alone; every failure of it is one of our errors."""
        with self._lock:
            fd = os.open(
                self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                with ESAPI(self._tcti) as tpm:
                    yield tpm
            except TSS2_Exception as exc:
                raise Unavailable(
                    "agent.tpm.unavailable",
                    f"the TPM refused a command ({int(exc.rc):#x})",
                ) from exc
            finally:
                os.close(fd)

    @staticmethod
    @contextlib.contextmanager
    def _loaded(tpm: ESAPI, context: TPMS_CONTEXT) -> Iterator[ESYS_TR]:
        handle = tpm.context_load(context)
        try:
            yield handle
        finally:
            tpm.flush_context(handle)

    @staticmethod
    def _primary(
        tpm: ESAPI, template: TPMT_PUBLIC, hierarchy: ESYS_TR
    ) -> tuple[Public, TPMS_CONTEXT]:
        handle, public, *_ = tpm.create_primary(
            TPM2B_SENSITIVE_CREATE(),
            TPM2B_PUBLIC(publicArea=template),
            hierarchy,
        )
        try:
            parsed = Public.parse(bytes(public.publicArea.marshal()))
            return parsed, tpm.context_save(handle)
        finally:
            tpm.flush_context(handle)

    def _with_ak(self, tpm: ESAPI) -> tuple[Public, TPMS_CONTEXT]:
        """The AK; made again where a restart has made its context stale."""
        if self._ak is not None:
            try:
                with self._loaded(tpm, self._ak[1]):
                    return self._ak
            except TSS2_Exception:
                self._ak = None
        template = TPMT_PUBLIC.parse(
            "ecc256:ecdsa-sha256:null", objectAttributes=_AK
        )
        self._ak = self._primary(tpm, template, ESYS_TR.ENDORSEMENT)
        return self._ak

    def _certify(
        self, tpm: ESAPI, context: TPMS_CONTEXT, label: str
    ) -> tuple[bytes, bytes]:
        ak, ak_context = self._with_ak(tpm)
        extra = TPM2B_DATA(extra_data(label, b"", ak.name))
        with (
            self._loaded(tpm, ak_context) as signer,
            self._loaded(tpm, context) as thing,
        ):
            attest, signature = tpm.certify(
                thing,
                signer,
                extra,
                TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL),
                session1=ESYS_TR.PASSWORD,
                session2=ESYS_TR.PASSWORD,
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

    def _ek_template(self, tpm: ESAPI) -> tuple[bytes, TPM2B_PUBLIC]:
        for name in ("EK-RSA2048", "H-3", "H-2"):
            try:
                certificate, template = create_ek_template(name, NVReadEK(tpm))
            except NoSuchIndex:
                continue
            if certificate:
                return bytes(certificate), template
        raise Unavailable(
            "agent.tpm.ek-certificate",
            "the TPM holds no endorsement certificate",
        )

    def identity(self) -> Identity:
        """:raises Unavailable: also ``agent.tpm.ek-certificate``."""
        with self._session() as tpm:
            certificate, template = self._ek_template(tpm)
            handle, public, *_ = tpm.create_primary(
                TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT
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
                TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT
            )
            try:
                with self._loaded(tpm, context) as ak:
                    return self._activate(
                        tpm,
                        ak,
                        ek,
                        bool(
                            template.publicArea.objectAttributes
                            & _OA.USERWITHAUTH
                        ),
                        TPM2B_ID_OBJECT(credential),
                        TPM2B_ENCRYPTED_SECRET(secret),
                    )
            except (TSS2_Exception, ValueError) as exc:
                raise VerificationError(
                    "agent.tpm.credential",
                    "the credential is not for this TPM and AK",
                ) from exc
            finally:
                tpm.flush_context(ek)

    @staticmethod
    def _activate(
        tpm: ESAPI,
        ak: ESYS_TR,
        ek: ESYS_TR,
        password: bool,
        credential: TPM2B_ID_OBJECT,
        secret: TPM2B_ENCRYPTED_SECRET,
    ) -> bytes:
        if password:  # high-range templates: userWithAuth
            return bytes(tpm.activate_credential(ak, ek, credential, secret))
        session = _policy_session(tpm)
        try:
            tpm.policy_secret(ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
            return bytes(
                tpm.activate_credential(
                    ak,
                    ek,
                    credential,
                    secret,
                    session1=ESYS_TR.PASSWORD,
                    session2=session,
                )
            )
        finally:
            tpm.flush_context(session)

    # -- PCRs and quotes -------------------------------------------------

    @staticmethod
    def _read(tpm: ESAPI, selection: Collection[int]) -> dict[int, bytes]:
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
        raise Unavailable("agent.tpm.pcr", "the PCRs do not hold still")

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
                        TPM2B_DATA(extra),
                        TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL),
                    )
                    out = bytes(attest), bytes(signature.marshal())
                after = self._read(tpm, selection)
                if after == before:
                    return Quote(*out, after)
                before = after
            raise Unavailable("agent.tpm.pcr", "the PCRs do not hold still")

    # -- bind key --------------------------------------------------------

    def make_bind(self) -> BindKey:
        """The bind key for the PCR values of now, certified by the AK."""
        with self._session() as tpm:
            pcrs = self._read(tpm, BOUND)
            template = TPMT_PUBLIC.parse(
                "ecc256:ecdh-sha256:null", objectAttributes=_BIND
            )
            template.authPolicy = TPM2B_DIGEST(policy_pcr(pcrs))
            public, context = self._primary(tpm, template, ESYS_TR.NULL)
            attest, signature = self._certify(tpm, context, LABEL_BIND)
            return BindKey(public, attest, signature, pcrs, context)

    def holds(self, bind: BindKey) -> bool:
        """Is the key of this boot, and are its PCRs as it was made?"""
        with self._session() as tpm:
            try:
                with self._loaded(tpm, bind.context):
                    pass
            except TSS2_Exception:
                return False
            return self._read(tpm, BOUND) == bind.pcrs

    def _salt_context(self, tpm: ESAPI) -> TPMS_CONTEXT:
        """The salt key, believed only after the AK has certified it."""
        if self._salt is not None:
            try:
                with self._loaded(tpm, self._salt):
                    return self._salt
            except TSS2_Exception:
                self._salt = None
        template = TPMT_PUBLIC.parse("ecc256:aes128cfb", _SALT)
        public, context = self._primary(tpm, template, ESYS_TR.NULL)
        attest, signature = self._certify(tpm, context, _LABEL_SALT)
        ak = self._with_ak(tpm)[0]
        verify_certify(
            ak,
            attest,
            signature,
            extra_data(_LABEL_SALT, b"", ak.name),
            public,
        )
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
        point = TPM2B_ECC_POINT(TPMS_ECC_POINT(x=x, y=y))

        def run(tpm: ESAPI, key: ESYS_TR, *sessions: ESYS_TR) -> bytes:
            out = tpm.ecdh_zgen(
                key, point, session1=sessions[0], session2=sessions[1]
            )
            # ``out`` is kept in a variable: its members live inside it
            return bytes(out.point.x).rjust(32, b"\0")

        return self._use(bind, run)

    def rsa_decrypt(self, bind: BindKey, ciphertext: bytes) -> bytes:
        """TPM2_RSA_Decrypt, for RSA bind keys (RSA-OAEP-256)."""

        def run(tpm: ESAPI, key: ESYS_TR, *sessions: ESYS_TR) -> bytes:
            out = tpm.rsa_decrypt(
                key,
                TPM2B_PUBLIC_KEY_RSA(ciphertext),
                TPMT_RSA_DECRYPT(scheme=TPM2_ALG.NULL),
                label=b"",
                session1=sessions[0],
                session2=sessions[1],
            )
            return bytes(out)

        return self._use(bind, run)

    def _use(self, bind: BindKey, run: Callable[..., T]) -> T:
        with self._session() as tpm:
            for _try in range(_TRIES):
                try:
                    return self._use_once(tpm, bind, run)
                except TSS2_Exception as exc:
                    if int(exc.rc) & 0xFFF == _PCR_CHANGED:
                        continue  # a PCR outside the policy moved: again
                    raise self._refusal(exc) from exc
        raise Unavailable("agent.tpm.pcr", "the PCRs do not hold still")

    @staticmethod
    def _refusal(error: TSS2_Exception) -> MHError:
        code = _plain(error)
        if code == _POLICY_FAIL:
            return VerificationError(
                "agent.tpm.policy",
                "the host is not in the state that the key is bound to",
            )
        if code in (_POINT, _VALUE):
            return VerificationError("agent.tpm.point", "not a curve point")
        return Unavailable(
            "agent.tpm.unavailable",
            f"the TPM refused a command ({int(error.rc):#x})",
        )

    def _use_once(self, tpm: ESAPI, bind: BindKey, run: Callable[..., T]) -> T:
        with contextlib.ExitStack() as stack:
            with self._loaded(tpm, self._salt_context(tpm)) as salt:
                secure = _salted_session(tpm, salt)
            stack.callback(tpm.flush_context, secure)
            policy = _policy_session(tpm)
            stack.callback(tpm.flush_context, policy)
            tpm.policy_pcr(policy, TPM2B_DIGEST(), _select(bind.pcrs))
            try:
                key = tpm.context_load(bind.context)
            except TSS2_Exception as exc:
                raise VerificationError(
                    "agent.tpm.boot", "the bind key is of another boot"
                ) from exc
            stack.callback(tpm.flush_context, key)
            return run(tpm, key, policy, secure)


def _select(
    selection: Collection[int] | Mapping[int, Any],
) -> TPML_PCR_SELECTION:
    return TPML_PCR_SELECTION.parse(
        "sha256:" + ",".join(str(i) for i in sorted(selection))
    )


def _policy_session(tpm: ESAPI) -> ESYS_TR:
    return tpm.start_auth_session(
        ESYS_TR.NONE,
        ESYS_TR.NONE,
        TPM2_SE.POLICY,
        TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL),
        TPM2_ALG.SHA256,
    )


def _salted_session(tpm: ESAPI, salt: ESYS_TR) -> ESYS_TR:
    session = tpm.start_auth_session(
        salt,
        ESYS_TR.NONE,
        TPM2_SE.HMAC,
        TPMT_SYM_DEF(
            algorithm=TPM2_ALG.AES,
            keyBits=TPMU_SYM_KEY_BITS(sym=128),
            mode=TPMU_SYM_MODE(sym=TPM2_ALG.CFB),
        ),
        TPM2_ALG.SHA256,
    )
    tpm.trsess_set_attributes(
        session,
        TPMA_SESSION.ENCRYPT
        | TPMA_SESSION.DECRYPT
        | TPMA_SESSION.CONTINUESESSION,
    )
    return session

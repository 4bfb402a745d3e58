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
"""A host whose keys are in software, and its enroller.

Good enough to prove that the client looks at everything; a real TPM's
evidence is checked by the functional tests.
"""

import datetime
import secrets

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from mh_core.akcert import issue_ak_certificate
from mh_core.evidence import BOUND, QUOTED, Evidence
from mh_core.tpm import build, policy
from mh_core.tpm import constants as c
from mh_core.tpm.public import Public
from mh_core.tpm.quote import LABEL_BIND, LABEL_VM, extra_data
from mh_core.vm_report import VmClaims

HOST_ID = "0b1f6b5e-6f4e-4a6e-9a53-2a3f3f0f1e77"


class Enroller:
    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "e")])
        now = datetime.datetime.now(datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(1))
            .not_valid_after(now + datetime.timedelta(30))
            .add_extension(x509.BasicConstraints(True, 0), True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


class SoftHost:
    """Makes evidence that verifies."""

    def __init__(self, enroller: Enroller, name: str = "node1") -> None:
        self.name = name
        self._ak = ec.generate_private_key(ec.SECP256R1())
        self.ak = Public.parse(
            build.ecc_public_area(self._ak.public_key(), c.AK_ATTRIBUTES)
        )
        self.pcrs = {i: secrets.token_bytes(32) for i in QUOTED}
        bound = policy.policy_pcr({i: self.pcrs[i] for i in BOUND})
        self.bind = Public.parse(
            build.ecc_public_area(
                ec.generate_private_key(ec.SECP256R1()).public_key(),
                c.BIND_ATTRIBUTES,
                policy=bound,
                scheme=c.ALG_ECDH,
            )
        )
        now = datetime.datetime.now(datetime.UTC)
        self.certificate = issue_ak_certificate(
            enroller.key,
            enroller.certificate,
            self.ak,
            HOST_ID,
            name,
            now,
            datetime.timedelta(1),
            7,
        )

    def evidence(self, extra: bytes) -> Evidence:
        quote = build.attest(
            c.ST_QUOTE,
            extra,
            build.quote_body(
                policy.pcr_selection(self.pcrs), policy.pcr_digest(self.pcrs)
            ),
        )
        parent = c.RH_NULL.to_bytes(4, "big")
        certify = build.attest(
            c.ST_CERTIFY,
            extra_data(LABEL_BIND, b"", self.ak.name),
            build.certify_body(
                self.bind.name, self.bind.qualified_name(parent)
            ),
        )
        return Evidence(
            ak_certificate=self.certificate,
            ak_public=self.ak.raw,
            bind_public=self.bind.raw,
            bind_attest=certify,
            bind_signature=build.ecdsa_signature(self._ak, certify),
            quote_attest=quote,
            quote_signature=build.ecdsa_signature(self._ak, quote),
            pcrs=self.pcrs,
        )

    def vm_evidence(self, nonce: bytes, claims: VmClaims) -> Evidence:
        return self.evidence(extra_data(LABEL_VM, nonce, claims.digest()))

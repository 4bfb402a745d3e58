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
"""The operator's list of TPM manufacturers."""

import pathlib
from dataclasses import dataclass

from cryptography import exceptions, x509

from mh_core.errors import InputError


@dataclass(frozen=True)
class EkCa:
    """What EK certificates may chain to."""

    roots: tuple[x509.Certificate, ...] = ()
    intermediates: tuple[x509.Certificate, ...] = ()


def _self_signed(certificate: x509.Certificate) -> bool:
    if certificate.issuer != certificate.subject:
        return False
    try:
        certificate.verify_directly_issued_by(certificate)
    except (
        exceptions.InvalidSignature,
        exceptions.UnsupportedAlgorithm,
        ValueError,
        TypeError,
    ):
        return False
    return True


def load(folder: pathlib.Path) -> EkCa:
    """Read every ``*.pem`` and ``*.crt`` of a directory.

    Self-signed certificates are roots, others intermediates.  An absent
    directory is an empty list, which admits nobody.

    :raises InputError: ``attest.enrolment.ek-ca``: a file there is no PEM.
    """
    roots: list[x509.Certificate] = []
    intermediates: list[x509.Certificate] = []
    if not folder.is_dir():
        return EkCa()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".pem", ".crt") or not path.is_file():
            continue
        try:
            found = x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError) as exc:
            raise InputError(
                "attest.enrolment.ek-ca",
                f"{path.name} in [enrolment] ek_ca_dir holds no certificate",
            ) from exc
        for certificate in found:
            if _self_signed(certificate):
                roots.append(certificate)
            else:
                intermediates.append(certificate)
    return EkCa(tuple(roots), tuple(intermediates))

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
"""What the TPM of this host shows: its identity, bind keys, quotes."""

from dataclasses import dataclass
from typing import Any

from mh_core.tpm.public import Public


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
    :param context: TPMS_CONTEXT, only for :class:`mh_nova.agent.tpm.Tpm`.
    """

    public: Public
    attest: bytes
    signature: bytes
    pcrs: dict[int, bytes]
    context: Any


@dataclass(frozen=True)
class Quote:
    """TPM2_Quote's answer and the PCR values it covers."""

    attest: bytes
    signature: bytes
    pcrs: dict[int, bytes]

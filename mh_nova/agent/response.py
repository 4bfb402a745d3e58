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
"""Response codes of the TPM, as errors of ours (TPM 2.0 Part 2, 6.6.3)."""

from mh_core.errors import MHError, Unavailable, VerificationError

#: TPM_RC_PCR_CHANGED: another PCR moved under a session.
_PCR_CHANGED = 0x128
#: Format-one codes without handle, session or parameter number.
_POLICY_FAIL, _POINT, _VALUE = 0x9D, 0xA7, 0x84


def _plain(code: int) -> int:
    """The response code without its handle/session/parameter bits."""
    code &= 0xFFF
    return code & 0xBF if code & 0x80 else code


def pcr_changed(code: int) -> bool:
    """Did a PCR outside the policy move, so that another try may do?"""
    return code & 0xFFF == _PCR_CHANGED


def unavailable(code: int) -> Unavailable:
    """What an unexpected refusal of the TPM is."""
    return Unavailable(
        "agent.tpm.unavailable", f"the TPM refused a command ({code:#x})"
    )


def restless() -> Unavailable:
    """PCRs changed at every try to read or use them."""
    return Unavailable("agent.tpm.pcr", "the PCRs do not hold still")


def no_certificate() -> Unavailable:
    """None of the known EK templates has a certificate in NV."""
    return Unavailable(
        "agent.tpm.ek-certificate",
        "the TPM holds no endorsement certificate",
    )


def refusal(code: int) -> MHError:
    """What the refusal to use a bind key is."""
    plain = _plain(code)
    if plain == _POLICY_FAIL:
        return VerificationError(
            "agent.tpm.policy",
            "the host is not in the state that the key is bound to",
        )
    if plain in (_POINT, _VALUE):
        return VerificationError("agent.tpm.point", "not a curve point")
    return unavailable(code)

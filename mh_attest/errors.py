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
"""Errors of the REST interface beyond those of the core."""

from mh_core.errors import MHError


class Unauthorized(MHError):
    """No token, or none that is known here (HTTP 401)."""


class TooLarge(MHError):
    """A body beyond the limit (HTTP 413)."""


def with_audit(error: MHError, audit: str) -> MHError:
    """Note on an error where the audit chain has it (``<chain>#<seq>``)."""
    error.__dict__["audit"] = audit
    return error


def audit_of(error: MHError) -> str:
    return str(error.__dict__.get("audit", ""))

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

"""Which HTTP status an error becomes, and the errors only a service has."""

from mh_core.errors import (
    Conflict,
    Denied,
    InputError,
    MHError,
    NotFound,
    Unavailable,
    VerificationError,
)


class Unauthenticated(MHError):
    """No credentials, or none that are known here."""


class TooLarge(MHError):
    """The body is larger than anything this server reads."""


class NotAllowed(MHError):
    """The resource has no such method."""


class Refused(MHError):
    """A release that was refused, and recorded.

    :param cause: the step's own error; it decides the status.
    :param audit: ``<chain>#<seq>`` of the record.
    """

    def __init__(self, cause: MHError, audit: str) -> None:
        super().__init__(cause.event, cause.message)
        self.cause = cause
        self.audit = audit


_STATUS: tuple[tuple[type[MHError], int], ...] = (
    (InputError, 400),
    (Unauthenticated, 401),
    (Denied, 403),
    (VerificationError, 403),
    (NotFound, 404),
    (NotAllowed, 405),
    (Conflict, 409),
    (TooLarge, 413),
    (Unavailable, 503),
)


def status(error: MHError) -> int:
    """HTTP status of an error; 500 for one that has no row above."""
    cause = error.cause if isinstance(error, Refused) else error
    for kind, code in _STATUS:
        if isinstance(cause, kind):
            return code
    return 500


def audit(error: MHError) -> str:
    """Number of the audit record that goes with an error, or nothing."""
    return error.audit if isinstance(error, Refused) else ""


def detail(error: BaseException) -> str:
    """Event id of the check in ``mh_core`` that made a step refuse."""
    cause = error.__cause__
    return cause.event if isinstance(cause, MHError) else ""

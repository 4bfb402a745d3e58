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
"""The one error family.

Whatever hostile input does to a function of this project, what leaves it is
an :class:`MHError`: a dotted event id that names the check that failed, and
a sentence for people.  Neither ever holds a secret.
"""


class MHError(Exception):
    """Base of every error the project raises on purpose.

    :param event: dotted id, e.g. ``core.tpm.quote.pcr-digest``; stable, used
        in audit records, REST answers and tests.
    :param message: one sentence, no secret in it.
    """

    def __init__(self, event: str, message: str) -> None:
        super().__init__(f"{message} [{event}]")
        self.event = event
        self.message = message


class InputError(MHError):
    """Bytes or a document that are malformed."""


class VerificationError(MHError):
    """Well-formed, but it does not prove what it must."""


class Denied(MHError):
    """A trust decision, or an access rule, said no."""


class NotFound(MHError):
    """Nothing there, or nothing the caller may know of."""


class Conflict(MHError):
    """The thing exists already, or is in another state than needed."""


class Unavailable(MHError):
    """A peer that the decision needs does not answer; the answer is no."""

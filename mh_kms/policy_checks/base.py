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

"""What a policy check is."""

import abc
from collections.abc import Collection
from dataclasses import dataclass

from mh_core.errors import Denied
from mh_core.evidence import VerifiedHost
from mh_core.request import KeyRequest
from mh_core.result import AttestationResult
from mh_kms.release_policy import ReleasePolicy


@dataclass(frozen=True)
class Facts:
    """All that a release is decided on.

    :param request: covered by the host's quote; project, user, instance and
        host in it are the cloud's claims.
    :param host: what this server verified by itself.
    :param result: the authority's word, verified.
    :param manifests: digests (hex) of the key's manifests.
    :param now: seconds since the epoch.
    """

    policy: ReleasePolicy
    request: KeyRequest
    host: VerifiedHost
    result: AttestationResult
    manifests: Collection[str]
    now: int


class PolicyCheck(abc.ABC):
    """One condition of a release policy.

    Security contract:

    * :meth:`check` returns nothing where the condition holds and raises
      :class:`Denied` in every other case, unknown ones too: a check can
      only take away;
    * it decides on the facts given and nothing else: no clock, no network,
      no files, no state between calls;
    * safe to use from several threads.
    """

    #: Name in the policy, and in the event id ``kms.release.<name>``.
    name: str

    @abc.abstractmethod
    def check(self, facts: Facts) -> None:
        """:raises Denied: ``kms.release.<name>``."""

    def denied(self, why: str) -> Denied:
        return Denied(f"kms.release.{self.name}", why)

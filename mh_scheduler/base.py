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
"""The contract of a filter (namespace ``mh_scheduler.filters``)."""

import abc
from collections.abc import Iterable
from typing import Any

from nova.scheduler import filters


class TrustFilter(filters.BaseHostFilter, metaclass=abc.ABCMeta):
    """Keeps launches off hosts that nobody vouches for.

    Security contract:

    * fail closed: a host passes only where a state that has not expired
      says so; an unknown host, an error or a silent server is a no;
    * the state comes from the attestation server, never from the host, the
      flavor or the image, which the cloud's users and hosts can change;
    * it never blocks longer than its timeout, and asks nothing per host;
    * it runs on rebuild: another image may need trust that the first did
      not;
    * it protects nobody on its own: forced hosts skip every filter, and the
      key server decides at each start.
    """

    RUN_ON_REBUILD = True
    run_filter_once_per_request = False

    @abc.abstractmethod
    def filter_all(
        self, filter_obj_list: Iterable[Any], spec_obj: Any
    ) -> list[Any]:
        """The hosts that pass, in the order they came.

        :raises nova.exception.NoValidHost: none does, with a reason for the
            user; only while nothing is allocated for the request.
        """

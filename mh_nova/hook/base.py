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

"""What a driver of nova-compute is (namespace ``mh_nova.driver``)."""

import abc
from typing import Any

from mh_nova.hook.rescue import Rescues


class TrustedDriver(abc.ABC):
    """A virt driver of nova's that starts protected instances by the agent.

    Beside this class a driver derives from one of nova's drivers and
    overrides what it must; its decisions are the three methods below.

    Security contract:

    * it never holds a key, and never could: nova-compute has no way to read
      one.  A driver that errs may fail to start an instance, not open it;
    * every start of a protected instance, also a reboot and a start at host
      boot, first passes :meth:`_mh_require`, then the agent, which sees the
      very XML that is then started, and hears of the end, good or bad;
    * an instance with any sign of protection, in its metadata, on its disk
      or with the agent, is never started as a stock one: where the signs
      disagree, the start is refused;
    * an operation that would write memory or disk in the clear is refused
      before anything has changed, and leaves a running guest running;
    * an instance without such a sign is left to nova's own methods;
    * a nova that is not the tested one is never overridden in the dark: the
      driver does not load, or the host loses its trait.
    """

    #: Rescues that are under way.
    _mh_rescues: Rescues

    @abc.abstractmethod
    def _mh_decide(self, instance: Any) -> bool:
        """Is the instance ours?  Asked at a start.

        :raises MHError: what is known of it disagrees, or the agent, whose
            answer is needed, gave none.
        """

    @abc.abstractmethod
    def _mh_protected(self, instance: Any) -> bool:
        """Would the operation leak?  Doubt is a yes."""

    @abc.abstractmethod
    def _mh_suspend(self, instance: Any) -> None:
        """May the guest's memory be written to this host's disk?

        :raises MHError: no: it would be in the clear.
        """

    @abc.abstractmethod
    def _mh_precache(self, context: Any, image: Any) -> bool:
        """Have an encrypted image in the cache.

        :returns: False: it was there.
        :raises MHError: it could not be fetched, or is not what it claims.
        """

    @abc.abstractmethod
    def _mh_drive(
        self, instance: Any, name: str, files: dict[str, bytes]
    ) -> None:
        """Have a config drive of these files attached, encrypted.

        :param name: of the disk.
        :param files: path to content; on no file system before.
        :raises MHError: the launch policy does not allow it.
        """

    @abc.abstractmethod
    def _mh_rebuild(self, instance: Any) -> None:
        """
        :raises MHError: what the image is said to be now is not what this
            instance was launched from.
        """

    @abc.abstractmethod
    def _mh_require(self) -> None:
        """
        :raises Denied: this host may not start protected instances now; the
            agent is asked each time.
        """

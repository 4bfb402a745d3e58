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
"""A guest that stopped without anybody asking nova."""

from typing import Any

from nova import context as nova_context
from nova import exception, objects
from nova.virt import event as virtevent
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_log import log as logging
from oslo_messaging import (  # type: ignore[import-untyped]
    MessagingException,
)

from mh_core.errors import Denied, MHError
from mh_nova.hook import faults
from mh_nova.hook.base import TrustedDriver

LOG = logging.getLogger(__name__)
STOPPED = "Trusted guest stopped"


class Stopped(LibvirtDriver, TrustedDriver):
    """Where the agent stopped it, its owner is told why."""

    _mh_client: Any

    def emit_event(self, event: Any) -> None:
        if (
            isinstance(event, virtevent.LifecycleEvent)
            and event.get_transition() == virtevent.EVENT_LIFECYCLE_STOPPED
        ):
            self._mh_say_why(str(event.get_instance_uuid()))
        super().emit_event(event)

    def _mh_say_why(self, instance_uuid: str) -> None:
        """Never keeps the event from nova."""
        try:
            why = self._mh_client.lease(instance_uuid).stopped
            if not why:
                return
            instance = objects.Instance.get_by_uuid(
                nova_context.get_admin_context(),
                instance_uuid,
                expected_attrs=["metadata"],
            )
            error = Denied("agent.lease.stopped", why)
            faults.tell(instance, faults.text(error, STOPPED))
        except (MHError, exception.NovaException, MessagingException) as exc:
            LOG.warning(
                "Nobody was told why %s stopped: %s", instance_uuid, exc
            )

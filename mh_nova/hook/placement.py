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

"""What a cold move holds of its hosts, once nobody will finish it.

While it moves, the instance holds its destination, and the migration, under
an id of its own, the source.  nova gives neither back where its process ended
in the middle: the hosts become full of moves that are no more.
"""

from typing import Any

from keystoneauth1 import exceptions as keystone
from oslo_log import log as logging

LOG = logging.getLogger(__name__)


def give_back(client: Any, context: Any, instance: Any, move: Any) -> None:
    """It is on the source: it holds that again, and nothing of the
    destination.

    :param client: nova's of placement; that it is away is logged.
    :raises nova.exception.NovaException: nova's.
    """
    try:
        if client.get_allocations_for_consumer(context, move.uuid):
            client.move_allocations(context, move.uuid, instance.uuid)
    except keystone.ClientException as exc:
        LOG.warning("Placement: %s", exc, instance=instance)


def let_go(client: Any, context: Any, instance: Any, move: Any) -> None:
    """It is on the destination, which it holds: nothing of the source.

    :raises nova.exception.NovaException: nova's.
    """
    try:
        client.delete_allocation_for_instance(
            context, move.uuid, consumer_type="migration"
        )
    except keystone.ClientException as exc:
        LOG.warning("Placement: %s", exc, instance=instance)

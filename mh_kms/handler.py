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

"""Every route of the key server, on one screen."""

from collections.abc import Callable
from typing import NamedTuple

from mh_kms.api import (
    audit,
    keys,
    leases,
    manifests,
    release,
    root,
    snapshots,
    tickets,
)
from mh_kms.api.call import Answer, Call


class Route(NamedTuple):
    """``token``: a bearer token is needed; the handler then asks the access
    rules about the object. Hosts bring no token but their TPM's evidence."""

    handle: Callable[[Call], Answer]
    token: bool = False


OWNER, OPEN = True, False
KEY = "/v1/keys/{key_id}"

ROUTES: dict[str, dict[str, Route]] = {
    "/v1": {"GET": Route(root.show, OPEN)},
    "/healthcheck": {"GET": Route(root.health, OPEN)},
    "/v1/keys": {
        "GET": Route(keys.index, OWNER),
        "POST": Route(keys.create, OWNER),
    },
    KEY: {
        "GET": Route(keys.show, OWNER),
        "DELETE": Route(keys.delete, OWNER),
        "POST": Route(release.compat, OPEN),
    },
    KEY + "/policy": {"PUT": Route(keys.set_policy, OWNER)},
    KEY + "/deliver": {"POST": Route(keys.deliver, OWNER)},
    KEY + "/manifests": {"POST": Route(manifests.create, OWNER)},
    KEY + "/manifests/{digest}": {"DELETE": Route(manifests.delete, OWNER)},
    KEY + "/tickets": {"POST": Route(tickets.create, OWNER)},
    KEY + "/audit": {"GET": Route(audit.index, OWNER)},
    KEY + "/challenge": {"POST": Route(release.challenge, OPEN)},
    KEY + "/snapshot": {"GET": Route(snapshots.show, OWNER)},
    KEY + "/snapshots": {"POST": Route(snapshots.create, OPEN)},
    KEY + "/release": {"POST": Route(release.release, OPEN)},
    KEY + "/lease": {"POST": Route(leases.ask, OPEN)},
    KEY + "/instances/{instance}": {
        "GET": Route(leases.show, OWNER),
        "PUT": Route(leases.set_revoked, OWNER),
    },
    "/data-encryption-key/request/{key_id}": {
        "POST": Route(release.compat, OPEN)
    },
}

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

from importlib.metadata import version

from mh_kms.api.call import Answer, Call
from mh_kms.db import migration

_VERSION = version("mystery-hill")


def show(call: Call) -> Answer:
    """Who this server is; the client pins the transport key."""
    return Answer(
        body={
            "origin": call.parts.origin,
            "transport_jwk": call.parts.transport.public,
            "version": _VERSION,
        }
    )


def health(call: Call) -> Answer:
    """503 where the database does not answer."""
    migration.require(call.parts.database)
    return Answer(body={"status": "ok"})

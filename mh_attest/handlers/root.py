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
"""Who this server is."""

from importlib import metadata

from mh_attest.handlers.base import Answer, Call


def show(call: Call) -> Answer:
    authority = call.service.authority
    return 200, {
        "issuer": authority.issuer,
        "jwk": authority.jwk(),
        "enroller_certificate": authority.enroller_pem(),
        "version": version(),
    }


def version() -> str:
    try:
        return metadata.version("mystery-hill")
    except metadata.PackageNotFoundError:
        return "0"  # run from a tree that nobody installed


def healthcheck(call: Call) -> Answer:
    """200 where the database answers; :raises Unavailable: if not."""
    with call.service.reading() as connection:
        connection.exec_driver_sql("SELECT 1")
    return 200, {"status": "ok"}

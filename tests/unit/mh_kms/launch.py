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

"""A launch that should pass."""

from dataclasses import replace
from typing import Any

from tests.unit.mh_kms.world import DEK, World


class Launch:
    """A key with a manifest, and a request that should pass."""

    def __init__(self, world: World, **policy: Any) -> None:
        self.world = world
        self.key = world.create_key(**policy)["id"]
        self.manifest = world.register(self.key)
        self.request = world.request(self.key, manifest_digest=self.manifest)

    def refused(
        self, answer: Any, event: str, detail: str = "", status: int = 403
    ) -> dict[str, Any]:
        """An error with that id, recorded as such; returns the record."""
        assert answer.status_code == status, answer.text
        error = answer.json["error"]
        assert error["event"] == event
        assert error["request_id"] == answer.headers["x-request-id"]
        record = self.world.audit(self.key)[-1]
        assert record["event"] == event
        assert record["audit"] == error["audit"]
        assert record["detail"] == detail
        assert record["request_id"] == error["request_id"]
        return record

    def passes(self, **changes: Any) -> None:
        request = replace(self.request, **changes)
        answer = self.world.release(self.key, request)
        assert answer.status_code == 200, answer.text
        payload = self.world.open(answer.json["jwe"], request)
        assert payload.dek.reveal() == DEK

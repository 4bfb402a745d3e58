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
"""Measures the ciphertext as a whole: format, size and SHA-256."""

import hmac
import os
from collections.abc import Mapping

from mh_core.errors import Denied
from mh_core.image.identify import HEAD_SIZE, kind
from mh_core.manifest import DRIVERS, Manifest
from mh_nova.agent.measurers.base import HashedFile, Measurer, Opener

EVENT = "agent.measurer.ciphertext"


class CiphertextMeasurer(Measurer):
    answers = frozenset({"ciphertext"})

    def measure(
        self, manifest: Manifest, image: HashedFile, opener: Opener
    ) -> Mapping[str, str]:
        """:raises Denied: ``agent.measurer.ciphertext.size|digest|format``."""
        if os.fstat(image.fd).st_size != manifest.disk_size:
            raise Denied(EVENT + ".size", "the size differs")
        if not hmac.compare_digest(image.sha256, manifest.disk_sha256):
            raise Denied(EVENT + ".digest", "the SHA-256 differs")
        if kind(os.pread(image.fd, HEAD_SIZE, 0)) != DRIVERS[manifest.format]:
            raise Denied(EVENT + ".format", "the format differs")
        return {"": "ok"}

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
"""What a measurer is."""

import abc
from dataclasses import dataclass

from mh_core.manifest import Manifest


@dataclass(frozen=True)
class HashedFile:
    """An image file that the agent itself has hashed.

    :param fd: the descriptor it was hashed through, open for reading;
        owned by whoever hashed it.
    :param size: bytes.
    :param sha256: hex, of all of them.
    """

    fd: int
    size: int
    sha256: str


class Measurer(abc.ABC):
    """Holds an image against the tenant's manifest.

    Security contract: a measurer believes nothing but the manifest, whose
    signature has been verified, and what it reads itself through
    ``image.fd``; it writes nothing, keeps no state between images, never
    sees a key, and is safe in several threads.  It returns a short verdict
    only where everything it looks at is as the manifest says; every other
    way out is an exception, and stops the launch.
    """

    @abc.abstractmethod
    def measure(self, manifest: Manifest, image: HashedFile) -> str:
        """
        :returns: at most 255 characters, for the VM report.
        :raises MHError: the image is not what the manifest says.
        """

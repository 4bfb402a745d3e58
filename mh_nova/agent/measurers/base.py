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
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

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


class Blocks(Protocol):
    """The guest's disk in clear, for reading, for as long as it is open.

    :param size: bytes.
    """

    size: int

    def read(self, offset: int, count: int) -> bytes:
        """:raises Unavailable: the export fails."""


#: Opens :class:`Blocks` over the image; started only when it is called.
Opener = Callable[[], AbstractContextManager[Blocks]]


class Measurer(abc.ABC):
    """Holds an image against the tenant's manifest.

    Security contract: a measurer believes nothing but the manifest, whose
    signature has been verified, and what it reads itself through
    ``image.fd`` or ``opener``; it writes nothing, never sees a key, and is
    safe in several threads.  What it remembers it remembers by the digests
    of image and question.  It returns verdicts only where everything it
    looks at is as the manifest says; every other way out is an exception,
    and stops the launch.
    """

    #: What of ``mh_core.manifest.MEASURES`` this measurer answers for.
    answers: frozenset[str] = frozenset()

    def configure(self, conf: Any) -> Mapping[str, str]:
        """Once, before the first image.

        :param conf: the ``[agent]`` group.
        :returns: what the audit log is to hold of this measurer.
        :raises MHError: it cannot be used; the agent does not start.
        """
        return {}

    @abc.abstractmethod
    def measure(
        self, manifest: Manifest, image: HashedFile, opener: Opener
    ) -> Mapping[str, str]:
        """
        :returns: for the VM report: the measurer's own verdict under the
            empty name, and one for each module that was asked for; each at
            most 255 characters.  Nothing where nothing was asked.
        :raises MHError: it differs, or cannot be measured.
        """

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
"""Measures what is inside the image: modules, boot-critical set, all files.

The disk is read by a process of its own that can do nothing else
(:mod:`mh_reader.run`); this side compares its answer with the manifest.
"""

import hashlib
import hmac
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mh_core.encoding import canonical_json
from mh_core.errors import Denied, Unavailable
from mh_core.manifest import Manifest
from mh_nova.agent.measurers.base import HashedFile, Measurer, Opener
from mh_nova.agent.readers import Reader, configured
from mh_reader import program
from mh_reader.run import MEASURES, run

LOG = logging.getLogger(__name__)
EVENT = "agent.measurer.files"
_REMEMBERED = 64
_NAME = 120


class FilesMeasurer(Measurer):
    """Images are measured one at a time: each takes memory, and a CPU.

    Bytes and question determine the answer, so that of an image that has
    been measured is remembered: by the SHA-256 of its ciphertext, of what
    was asked, and of the program that answered.
    """

    answers = frozenset(MEASURES)

    def __init__(self) -> None:
        self._reader: Reader | None = None
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def configure(self, conf: Any) -> Mapping[str, str]:
        """Where the reader is not installed, images that need it are
        refused; others are not.

        :raises InputError: ``agent.conf.reader``.
        """
        try:
            installed = program.digest()
        except Unavailable as exc:
            LOG.warning("%s.reader: %s", EVENT, exc.message)
            return {"missing": exc.message}
        self._reader = configured(conf, installed)
        return {"installed": installed, "expected": self._reader.digest}

    def measure(
        self, manifest: Manifest, image: HashedFile, opener: Opener
    ) -> Mapping[str, str]:
        """
        :raises Denied: ``agent.measurer.files.differs|missing|unlisted``,
            ``reader.run.*``, ``reader.program.digest``.
        :raises Unavailable: ``agent.measurer.files.reader``,
            ``reader.*``.
        """
        if manifest.measure not in MEASURES:
            return {}
        if self._reader is None:
            raise Unavailable(EVENT + ".reader", "there is no reader")
        key = _key(manifest, image, self._reader.digest)
        with self._lock:
            if key not in self._known:
                self._measure(manifest, opener, self._reader)
                self._known[key] = None
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        return {"": "ok"} | dict.fromkeys(manifest.modules, "ok")

    def _measure(
        self, manifest: Manifest, opener: Opener, reader: Reader
    ) -> None:
        names: tuple[str, ...] = ()
        if manifest.measure == "modules":
            names = tuple(sorted(manifest.modules))
        with opener() as blocks:
            found = run(
                blocks, manifest.measure, names, reader.limits, reader.digest
            )
        for name, expected in manifest.modules.items():
            if name not in found:
                raise Denied(
                    EVENT + ".missing", f"{_short(name)} is not there"
                )
            if not hmac.compare_digest(found[name], expected):
                raise Denied(
                    EVENT + ".differs",
                    f"{_short(name)} is not what the manifest says",
                )
        for name in found:
            if name not in manifest.modules:
                raise Denied(
                    EVENT + ".unlisted",
                    f"{_short(name)} is not in the manifest",
                )


def _key(manifest: Manifest, image: HashedFile, reader: str) -> bytes:
    question = canonical_json(
        [image.sha256, image.size, manifest.measure, manifest.modules, reader]
    )
    return hashlib.sha256(question).digest()


def _short(name: str) -> str:
    """One line; the end of a path says more than its start."""
    text = "".join(one if one.isprintable() else "?" for one in name)
    if len(text) <= _NAME:
        return text
    volume, _, path = text.partition(":")
    return f"{volume[:40]}:…{path[-(_NAME - 42) :]}"

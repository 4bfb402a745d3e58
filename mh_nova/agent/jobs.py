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
"""Copies under way: one for each instance, in the background.

The hook begins one, asks how it goes, has a snapshot registered once its
image is stored, and ends it.  Whoever dies in the middle leaves a file, which
the next start of the agent, or of nova-compute, removes.
"""

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from mh_core.errors import Conflict, NotFound
from mh_core.snapshot import SnapshotClaims
from mh_nova.agent.kms import KeyUrl
from mh_nova.agent.paths import Root

EVENT = "agent.copy"
#: Files of copies in an instance's directory.
SNAPSHOT = "snapshot-"
FLATTENED = "flattened-disk"
#: Copies at the same time on one host; others wait.
AT_ONCE = 4
#: Seconds that one look at a copy waits for its end.
PATIENCE = 2.0
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that is ready to be stored, and then registered.

    The new key is in it wrapped to the key server's transport key only.

    :param fd: of the file, under a lease; closed with the job.
    :param url: of the source's key.
    :param size: bytes of the file.
    :param sha512: of the file, hex.
    """

    fd: int
    url: KeyUrl
    claims: SnapshotClaims
    manifest: str
    jwe: str = field(repr=False)
    size: int
    virtual_size: int
    sha512: str


@dataclass
class Job:
    """
    :param name: of the file, in the instance's directory.
    :param owed: a snapshot that somebody may have stored by now, and whose
        key the key server has not got.
    """

    instance: str
    name: str
    owed: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)
    future: "Future[Snapshot | None]" = field(default_factory=Future)
    ending: bool = False


class Jobs:
    """
    :param root: of ``instances_path``.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._all: dict[str, Job] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="copy")

    def free(self, instance: str) -> None:
        """:raises Conflict: ``agent.copy.busy``."""
        with self._lock:
            if instance in self._all:
                raise Conflict(
                    EVENT + ".busy", "a copy of the instance is being made"
                )

    def begin(
        self, instance: str, name: str, work: Callable[[Job], Snapshot | None]
    ) -> None:
        """:raises Conflict: ``agent.copy.busy``."""
        job = Job(instance, name)
        with self._lock:
            if instance in self._all:
                raise Conflict(
                    EVENT + ".busy", "a copy of the instance is being made"
                )
            self._all[instance] = job
            job.future = self._pool.submit(work, job)

    def get(self, instance: str) -> Job:
        """:raises NotFound: ``agent.copy.unknown``."""
        with self._lock:
            job = self._all.get(instance)
        if job is None:
            raise NotFound(
                EVENT + ".unknown",
                "no copy is being made, or the agent has restarted since",
            )
        return job

    def end(self, instance: str) -> None:
        """Give up, or clear away, an instance's copy, if there is one."""
        with self._lock:
            job = self._all.get(instance)
            if job is None or job.ending:
                return
            job.ending = True
        job.cancelled.set()
        if not job.future.cancel():
            wait([job.future])
            if job.future.exception() is None:
                made = job.future.result()
                if made is not None:
                    os.close(made.fd)
        self.unlink(instance, job.name)
        with self._lock:
            del self._all[instance]

    def owed(self) -> list[tuple[Job, Snapshot]]:
        """Snapshots that may be stored, without their keys."""
        with self._lock:
            jobs = [job for job in self._all.values() if job.owed]
        return [
            (job, made)
            for job in jobs
            if not job.ending and (made := job.future.result()) is not None
        ]

    def end_all(self) -> None:
        for instance in list(self._all):
            self.end(instance)

    def stop(self) -> None:
        self.end_all()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def unlink(self, instance: str, name: str) -> None:
        try:
            with self._root.directory(instance) as directory:
                os.unlink(name, dir_fd=directory)
        except (NotFound, FileNotFoundError):
            pass

    def leftovers(self) -> list[tuple[str, str]]:
        """Instance and name of each file of a copy that nobody makes."""
        with self._lock:
            own = {(job.instance, job.name) for job in self._all.values()}
        try:
            instances = os.listdir(self._root.path)
        except FileNotFoundError:
            return []
        return [
            (instance, name)
            for instance in sorted(filter(_UUID.fullmatch, instances))
            for name in self._root.names(instance)
            if (name.startswith(SNAPSHOT) or name == FLATTENED)
            and (instance, name) not in own
        ]

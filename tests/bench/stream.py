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
"""Memory and time of the stream form at several sizes.

``python -m tests.bench.stream [MiB …]``; the last line is JSON: for each
size the most memory (KiB) that agent, nbdcopy and qemu-nbd had at once
during the stream, above what the agent had before, and seconds.
"""

import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

from mh_core.secret import Secret
from mh_glance import encrypt
from mh_nova.agent.stream import Streams
from mh_nova.agent.stream_server import read_request
from tests.functional.mh_nova.agent.test_formats import sign
from tests.functional.mh_nova.agent.test_stream import request
from tests.functional.mh_nova.agent.world import HOST, MIB, World


def _own(pid: str, field: bytes) -> int:
    """A value of /proc/<pid>/status in KiB."""
    try:
        for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def _children(pid: str) -> list[str]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return found + [one for child in found for one in _children(child)]


class Watch(threading.Thread):
    """The most that this process and its children have had at once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.me = str(os.getpid())
        self.before = _own(self.me, b"RssAnon")
        self.peak = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.02):
            # not the pages of the spool, which the kernel may drop
            now = _own(self.me, b"RssAnon") - self.before
            # threads of the world start tools from any thread of this one
            for thread in os.listdir("/proc/self/task"):
                path = Path(f"/proc/self/task/{thread}/children")
                try:
                    found = path.read_text().split()
                except OSError:
                    continue
                for child in found:
                    for pid in (child, *_children(child)):
                        now += _own(pid, b"RssAnon")
            self.peak = max(self.peak, now)


def _drain(fd: int, counted: list[int]) -> None:
    while data := os.read(fd, 1 << 20):
        counted[0] += len(data)


def one(size: int) -> dict[str, float]:
    """Stream an image of so many bytes of random content."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.conf.set_override("spool_dir", folder, group="stream")
        plain = Path(folder) / "plain"
        with plain.open("wb") as out:
            for _ in range(size // MIB):
                out.write(os.urandom(MIB))
        made = encrypt.encrypt(
            str(plain), folder + "/image", Secret(world.tenant.dek)
        )
        plain.unlink()
        sign(world, made)
        streams = Streams(world.launcher._p)
        record, ticket = read_request(request(world), HOST)
        reading, writing = os.pipe()
        counted = [0]
        reader = threading.Thread(target=_drain, args=(reading, counted))
        reader.start()
        watch = Watch()
        watch.start()
        begin = time.monotonic()
        with open(made.path, "rb") as source:
            streams.open(record, ticket, source.fileno(), writing)
        taken = time.monotonic() - begin
        os.close(writing)
        reader.join()
        watch.stopped.set()
        os.close(reading)
        streams.stop()
        world.stop()
        if counted[0] != size:
            raise SystemExit(f"{counted[0]} bytes of {size}")
    return {"mib": size // MIB, "peak_kib": watch.peak, "seconds": taken}


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    sizes = [int(word) for word in sys.argv[1:]] or [64, 1024]
    rows = [one(size * MIB) for size in sizes]
    for row in rows:
        print(f"{row['mib']} MiB: {row['peak_kib']} KiB, "
              f"{row['seconds']:.1f} s")  # fmt: skip
    print(json.dumps({"benchmark": "stream", "sizes": rows}))


if __name__ == "__main__":
    main()

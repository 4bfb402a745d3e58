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
"""The measuring process, from its start to its answer.

Started by :mod:`mh_reader.run` with a socket and the libraries' files as
open descriptors, and nothing else.

1. the libraries are loaded;
2. the process seals itself in (:mod:`.sandbox`), and says so;
3. the parent, when it has seen that this is so, sends the job;
4. the disk is read, the answer sent.
"""

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import sys
from typing import Any

from mh_reader.inside import sandbox
from mh_reader.inside.blocks import Disk, Refused, receive, send
from mh_reader.inside.files import Budget
from mh_reader.inside.work import Work

_MOST_JOB = 8 << 20


def _load(name: str, fd: int) -> Any:
    path = f"/proc/self/fd/{fd}"
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    os.close(fd)
    return module


def main() -> None:
    """Arguments: socket, user, group, memory, seconds, ``kind=module=fd``."""
    channel, user, group, memory, seconds = map(int, sys.argv[1:6])
    # 1
    modules = {}
    for text in sys.argv[6:]:
        use, name, number = text.split("=")
        modules[use] = _load(name, int(number))
    # what is loaded on first use has to be loaded now
    hashlib.sha256(b"").hexdigest()
    "".encode("utf-8", "surrogatepass")
    json.dumps(json.loads("{}"))
    sys.setrecursionlimit(4000)
    # 2
    sandbox.seal(user, group, memory, seconds)
    send(channel, b"S")
    # 3
    length = int.from_bytes(receive(channel, 4), "big")
    if length > _MOST_JOB:
        os._exit(3)
    job = json.loads(receive(channel, length))
    # 4
    try:
        found = Work(
            Disk(channel, job["size"]),
            modules,
            Budget(job["data"], job["entries"]),
        ).run(job["measure"], job["names"])
        kind, answer = b"D", json.dumps(found).encode()
    except Refused as exc:
        kind, answer = b"E", str(exc).encode("utf-8", "replace")[:400]
    except (
        ArithmeticError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as exc:
        # a library's words about bytes nobody vouches for: the kind only
        answer = f"cannot be read ({type(exc).__name__})".encode()
        kind = b"E"
    send(channel, kind + len(answer).to_bytes(4, "big") + answer)
    os._exit(0)

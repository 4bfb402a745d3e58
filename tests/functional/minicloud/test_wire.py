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
"""What crosses the migration's ports in clear is found, whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.minicloud import wire
from tests.minicloud.layout import REPOSITORY

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="makes a network namespace"
)
_TALK = """
import socket, subprocess, sys, time
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
sniffer = subprocess.Popen(
    [sys.executable, "-m", "tests.minicloud.wire", sys.argv[1]]
)
while not __import__("os").path.exists(sys.argv[1]):
    time.sleep(0.05)
for port in map(int, sys.argv[2:]):
    server = socket.create_server(("127.0.0.1", port))
    # 49160: of the migration's, by chance the port of another one's client
    mine = ("", 49160) if port == 49216 else None
    client = socket.create_connection(("127.0.0.1", port), None, mine)
    there, _ = server.accept()
    client.sendall(b"out-%d;" % port + bytes(100000))
    got = 0
    while got < 100000:
        got += len(there.recv(65536))
    there.sendall(b"back-%d;" % port)
    client.recv(64)
    for one in (client, there, server):
        one.close()
time.sleep(0.5)
sniffer.terminate()
sniffer.wait()
"""


def test_both_ways_on_every_port(tmp_path: Path) -> None:
    out = tmp_path / "wire"
    ports = (16509, 49152, 49153, 49215)
    subprocess.run(
        [
            *("unshare", "--net", sys.executable, "-c", _TALK, str(out)),
            *map(str, (*ports, 49216)),
        ],
        cwd=REPOSITORY,
        check=True,
        timeout=60,
    )
    seen = out.read_bytes()
    for port in ports:
        assert f"out-{port};".encode() in seen
        assert f"back-{port};".encode() in seen
    assert b"-49216;" not in seen
    assert len(seen) >= 100000 * len(ports)


@pytest.mark.parametrize(
    "frame", [b"", bytes(14), bytes(60), b"\0" * 12 + b"\x86\xdd" + bytes(60)]
)
def test_other_packets_have_no_payload(frame: bytes) -> None:
    assert wire.packet(frame) is None
    assert wire.Calls().content(frame) == b""

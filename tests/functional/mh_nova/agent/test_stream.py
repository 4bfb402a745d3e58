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
"""``mh-agent stream``, with real pipes, TLS, qemu-nbd and nbdcopy."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mh_core.errors import InputError
from mh_nova.agent.journal import read
from mh_nova.agent.stream import Streams
from mh_nova.agent.stream_server import StreamServer, build, read_request
from tests.functional.mh_nova.agent.test_formats import (
    content,
    encrypted,
    sign,
    wrapped,
)
from tests.functional.mh_nova.agent.world import HOST, KEY_ID, MIB, World

ROOT = Path(__file__).parents[4]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    for name, value in {
        "enabled": True,
        "socket": str(tmp_path / "stream.sock"),
        "spool_dir": str(tmp_path),
        "allowed_uids": [os.geteuid()],
        "idle_timeout": 20,
    }.items():
        world.conf.set_override(name, value, group="stream")
    yield world
    world.stop()


@pytest.fixture
def server(world: World) -> Iterator[StreamServer]:
    made = build(world.launcher._p)
    assert made is not None
    made.start()
    yield made
    made.stop()


def request(world: World, **changes: object) -> dict[str, object]:
    return {
        "instance": world.instance,
        "image": world.tenant.image,
        "project": "p" * 32,
        "user": "u" * 32,
        "key_url": world.kms.url,
        "key_id": KEY_ID,
        "manifest": world.tenant.manifest,
        **changes,
    }


def stream(
    world: World, data: bytes, **changes: object
) -> "subprocess.CompletedProcess[bytes]":
    file = world.folder / "request.json"
    file.write_text(json.dumps(request(world, **changes)))
    return subprocess.run(
        [
            *(sys.executable, "-m", "mh_nova.cmd.agent", "stream"),
            *("--request", file, "--socket", world.conf.stream.socket),
        ],
        input=data,
        capture_output=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )


TOOLS = ("nbdcopy", "qemu-nbd", "qemu-img")


def nothing_left(world: World) -> bool:
    """No spool, no child, and no descriptor of one."""
    me = Path(f"/proc/{os.getpid()}")
    held = [
        os.readlink(path)
        for path in (me / "fd").iterdir()
        if path.is_symlink() and os.path.lexists(path)
    ]
    # other tests' servers may be children of this process, too
    children = [
        pid
        for pid in (me / f"task/{os.getpid()}/children").read_text().split()
        if Path(f"/proc/{pid}/comm").read_text().strip() in TOOLS
    ]
    return not children and not any(
        "memfd:mh" in name or f"{world.folder}/#" in name for name in held
    )


@pytest.mark.parametrize("kind", ["qcow2", "luks", "ova"])
def test_whole(world: World, server: StreamServer, kind: str) -> None:
    made = wrapped(world) if kind == "ova" else encrypted(world, kind)
    sign(world, made)
    done = stream(world, world.tenant.data)
    assert done.returncode == 0, done.stderr
    assert done.stdout == content(world).read_bytes()
    assert b"agent.stream.opened" in done.stderr
    (asked,) = world.kms.requests
    assert (asked.purpose, asked.disks) == ("stream", ())
    assert world.events()[-1] == "agent.stream.opened"
    assert nothing_left(world)


def broken(data: bytes) -> dict[str, bytes]:
    changed = bytearray(data)
    changed[-70000] ^= 1
    return {
        "cut": data[:-1],
        "short": data[: 1 << 20],
        "empty": b"",
        "longer": data + b"x",
        "changed": bytes(changed),
        "header": b"\0" * 512 + data[512:],
    }


@pytest.mark.parametrize(
    ("how", "event"),
    [
        ("cut", "agent.measure.size"),
        ("short", "agent.measure.size"),
        ("empty", "agent.measure.size"),
        ("longer", "agent.stream.size"),
        ("changed", "agent.measure.digest"),
        ("header", "agent.measure.digest"),
    ],
)
def test_cut_or_changed_gives_nothing(
    world: World, server: StreamServer, how: str, event: str
) -> None:
    sign(world, encrypted(world, "qcow2"))
    done = stream(world, broken(world.tenant.data)[how])
    assert done.returncode == 1
    assert done.stdout == b""
    assert event.encode() in done.stderr
    assert "agent.stream.opened" not in world.events()
    assert nothing_left(world)


def test_the_key_server_says_no(world: World, server: StreamServer) -> None:
    sign(world, encrypted(world, "qcow2"))
    world.kms.reply = lambda path: (
        world.kms.error(403, "kms.release.purpose")
        if path.endswith("/release")
        else None
    )
    done = stream(world, world.tenant.data)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"kms.release.purpose" in done.stderr


def test_no_lease_on_what_has_left(
    world: World, server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(world, encrypted(world, "qcow2"))
    world.kms.twist = lambda payload: replace(payload, lease=600)
    done = stream(world, world.tenant.data)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b".lease" in done.stderr


@pytest.mark.parametrize(
    ("changes", "event"),
    [
        ({"host": "node2"}, "agent.stream.host"),
        ({"key_url": "https://169.254.169.254/v1/keys/" + KEY_ID},
         "agent.kms.origin"),
        ({"instance": "x"}, "agent.stream.request"),
        ({"path": "/etc/shadow"}, "agent.stream.request"),
        ({"manifest": "a.b.c"}, "agent.stream.size"),
    ],
)  # fmt: skip
def test_requests_that_are_refused(
    world: World,
    server: StreamServer,
    changes: dict[str, object],
    event: str,
) -> None:
    sign(world, encrypted(world, "qcow2"))
    done = stream(world, world.tenant.data, **changes)
    assert (done.returncode, done.stdout) == (1, b"")
    assert event.encode() in done.stderr


def test_nobody_else_gets_it(world: World, server: StreamServer) -> None:
    server._allowed = frozenset({12345})
    sign(world, encrypted(world, "qcow2"))
    done = stream(world, world.tenant.data)
    assert (done.returncode, done.stdout) == (1, b"")
    assert not world.kms.asked


def test_off_by_default(world: World) -> None:
    world.conf.clear_override("enabled", group="stream")
    assert build(world.launcher._p) is None


def test_the_consumer_goes_away(world: World, server: StreamServer) -> None:
    """It reads a little, and leaves: the agent's tools end."""
    big = world.folder / "plain.raw"
    big.write_bytes(os.urandom(8 * MIB))
    sign(world, encrypted(world, "qcow2"))
    file = world.folder / "request.json"
    file.write_text(json.dumps(request(world)))
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "mh_nova.cmd.agent", "stream"),
            *("--request", file, "--socket", world.conf.stream.socket),
        ],
        stdin=world.tenant.file.open("rb"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert len(child.stdout.read(1000)) == 1000
        child.stdout.close()
        words = child.stderr.read()
    assert child.returncode == 1
    assert b"agent.stream.write" in words


def test_the_producer_stalls(world: World, server: StreamServer) -> None:
    world.conf.set_override("idle_timeout", 1, group="stream")
    sign(world, encrypted(world, "qcow2"))
    reading, writing = os.pipe()
    streams = Streams(world.launcher._p)
    record, ticket = read_request(request(world), HOST)
    begin = time.monotonic()
    os.write(writing, b"QFI\xfb")
    with (
        pytest.raises(Exception, match="stalled"),
        open(os.devnull, "wb") as out,
    ):
        streams.open(record, ticket, reading, out.fileno())
    assert time.monotonic() - begin < 10
    os.close(reading)
    os.close(writing)
    streams.stop()


@pytest.mark.parametrize("fds", [0, 1])
def test_descriptors_are_needed(
    world: World, server: StreamServer, fds: int
) -> None:
    with (
        socket.socket(socket.AF_UNIX) as peer,
        open(os.devnull, "rb") as null,
    ):
        peer.connect(world.conf.stream.socket)
        socket.send_fds(peer, [struct.pack(">I", 2)], [null.fileno()] * fds)
        peer.sendall(b"{}")
        assert b"agent.stream.request" in peer.recv(4096)
    assert nothing_left(world)


def test_no_key_in_argv_environment_or_file(
    world: World, server: StreamServer
) -> None:
    """Looked at while the tools run: the consumer reads nothing yet."""
    big = world.folder / "plain.raw"
    sign(world, encrypted(world, "qcow2"))
    assert big.exists()
    file = world.folder / "request.json"
    file.write_text(json.dumps(request(world)))
    key = world.tenant.dek
    needles = (key, key.hex().encode())
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "mh_nova.cmd.agent", "stream"),
            *("--request", file, "--socket", world.conf.stream.socket),
        ],
        stdin=world.tenant.file.open("rb"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    ) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        seen = []
        for line in subprocess.run(
            ["ps", "-eo", "pid,comm"], capture_output=True, text=True,
            check=True,
        ).stdout.splitlines()[1:]:  # fmt: skip
            pid, name = line.split(maxsplit=1)
            if name in ("nbdcopy", "qemu-nbd"):
                seen.append(name)
                for part in ("cmdline", "environ"):
                    text = Path(f"/proc/{pid}/{part}").read_bytes()
                    assert not any(needle in text for needle in needles)
        assert {"nbdcopy", "qemu-nbd"} <= set(seen)
        child.stdout.read()
    assert child.returncode == 0
    for path in world.folder.rglob("*"):
        if path.is_file() and path.name != "plain.raw":
            data = path.read_bytes()
            assert not any(needle in data for needle in needles), path


def test_a_refusal_is_recorded(world: World, server: StreamServer) -> None:
    sign(world, encrypted(world, "qcow2"))
    stream(world, b"x")
    rows = list(read(world.folder / "state/audit.log"))
    assert b"agent.measure.size" in rows[-1][0]


def test_request_is_strict() -> None:
    with pytest.raises(InputError):
        read_request([], HOST)


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """Of the agent and what it starts, as ``tests.bench.stream`` counts."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.stream", "16", "128"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    small, large = json.loads(done.stdout.splitlines()[-1])["sizes"]
    assert small["peak_kib"] > 0
    # an image that was held somewhere would show its 112 MiB
    assert large["peak_kib"] - small["peak_kib"] < 32 * 1024

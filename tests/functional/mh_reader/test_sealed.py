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
"""What the sealed process can do: nothing but what it was given."""

import os
import pathlib
import subprocess
import sys

import pytest

from mh_core.errors import Denied, MHError, Unavailable
from mh_reader import program
from mh_reader.run import Limits
from tests.functional.mh_reader.conftest import File, measure, run

ROOT = pathlib.Path(__file__).resolve().parents[3]
SEALED = """
import ctypes, mmap, os, signal, socket, sys
sys.path.insert(0, sys.argv[1])
from mh_reader.inside import sandbox
libc = ctypes.CDLL(None, use_errno=True)
page = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
number = int(os.environ.get("NUMBER", "0"))
sandbox.seal(65534, 65534, 256 << 20, 1)
os.write(1, b"sealed\\n")
{attempt}
os.write(1, b"escaped\\n")
"""


def _attempt(line: str) -> tuple[bytes, int]:
    done = subprocess.run(
        [sys.executable, "-c", SEALED.format(attempt=line), str(ROOT)],
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.stdout, done.returncode


def test_memory_and_its_own_descriptors_work() -> None:
    said, code = _attempt("x = bytearray(50 << 20); os.write(1, b'ok\\n')")
    assert said == b"sealed\nok\nescaped\n"
    assert code == 0


@pytest.mark.parametrize(
    "line",
    [
        "open('/etc/passwd')",
        "os.open('/tmp/x', os.O_CREAT | os.O_WRONLY)",
        "os.stat('/')",
        "os.listdir('/')",
        "os.unlink('/tmp/none')",
        "os.chdir('/')",
        "socket.socket()",
        "socket.socketpair()",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "libc.execve(b'/bin/true', None, None)",
        "os.kill(1, 0)",
        "os.kill(os.getppid(), signal.SIGKILL)",
        "os.setuid(0)",
        "os.memfd_create('x')",
        "os.pipe()",
        "os.pidfd_open(1)",
        "libc.ptrace(16, 1, 0, 0)",
        "libc.prctl(4, 1, 0, 0, 0)",
        "libc.unshare(0x10000000)",
        "libc.mount(b'none', b'/', b'tmpfs', 0, None)",
        "libc.mprotect(address, 4096, 5)",
        "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
        "libc.bpf(0, 0, 0)",
        "libc.syscall(425, 1, 0)",
        "libc.syscall(304, 1, 2, 3)",
        "libc.ioctl(1, 0x5413, address)",
        "libc.sched_setaffinity(0, 8, address)",
    ],
)
def test_everything_else_ends_it(line: str) -> None:
    said, code = _attempt(line)
    assert said == b"sealed\n"
    # SIGSYS, or an exception where Python itself refused before the kernel
    assert code == -31


def test_memory_and_time_are_bounded() -> None:
    said, code = _attempt("x = bytearray(600 << 20)")
    assert said == b"sealed\n"
    assert code != 0
    said, code = _attempt("while True: pass")
    assert said == b"sealed\n"
    assert code == -9


def _liar(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Another program in the reader's place, which speaks its protocol."""
    real = program._sources()
    source = (
        "import os, sys, time\n"
        "from mh_reader.inside import sandbox\n"
        "channel, user, group, memory, seconds = map(int, sys.argv[1:6])\n"
        "def seal(): sandbox.seal(user, group, memory, seconds)\n"
        "def send(data):\n"
        "    while data: data = data[os.write(channel, data):]\n"
        "def answer(kind, data):\n"
        "    send(kind + len(data).to_bytes(4, 'big') + data)\n"
        "def receive(count):\n"
        "    data = b''\n"
        "    while len(data) < count:\n"
        "        data += os.read(channel, count - len(data))\n"
        "    return data\n"
        "def job(): return receive(int.from_bytes(receive(4), 'big'))\n" + body
    )
    lying = {**real, "__main__.py": source.encode()}
    monkeypatch.setattr(program, "_sources", lambda: lying)


HONEST = "seal(); send(b'S'); job()\n"
DIGEST = "12" * 32


def _ask(tmp_path: pathlib.Path, seconds: int = 20) -> str:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(600_000))
    found, message = "ok", ""
    try:
        measure(disk, "all", limits=Limits(seconds=seconds))
    except MHError as exc:
        found, message = exc.event, exc.message
    assert len(message) < 400
    assert message.isprintable()
    return found


def test_a_liar_is_heard_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = f"""answer(b'D', b'{{"p1:/a": "{DIGEST}"}}')\n"""
    _liar(monkeypatch, HONEST + answer)
    assert _ask(tmp_path) == "ok"


@pytest.mark.parametrize(
    ("body", "event"),
    [
        ("send(b'S'); job()\n", "reader.run.seal"),
        ("seal(); send(b'T'); job()\n", "reader.run.seal"),
        ("seal()\n", "reader.run.start"),
        ("raise SystemExit\n", "reader.run.start"),
        (HONEST, "reader.run.ended"),
        (HONEST + "os.open('/', 0)\n", "reader.run.ended"),
        (HONEST + "send(b'X' + bytes(4))\n", "reader.run.protocol"),
        (HONEST + "answer(b'D', b'')\n", "reader.run.protocol"),
        (HONEST + "answer(b'D', b'[]')\n", "reader.run.protocol"),
        (HONEST + "answer(b'D', b'{\"a\": 1}')\n", "reader.run.protocol"),
        (
            HONEST + "answer(b'D', b'{\"p1:/a\": \"12\"}')\n",
            "reader.run.protocol",
        ),
        (HONEST + "send(b'D' + b'\\xff' * 4)\n", "reader.run.protocol"),
        (
            HONEST + "send(b'R' + (3).to_bytes(8, 'big'))\n",
            "reader.run.protocol",
        ),
        (HONEST + "send(b'R' + b'\\xff' * 8)\n", "reader.run.protocol"),
        (
            HONEST
            + "while True:\n"
            + "    send(b'R' + bytes(8)); receive(256 * 1024)\n",
            "reader.run.protocol",
        ),
        (
            HONEST + "answer(b'E', b'\\x1b[2J\\n\\xff' * 90)\n",
            "reader.run.disk",
        ),
    ],
)
def test_a_liar_gains_nothing(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    event: str,
) -> None:
    _liar(monkeypatch, body)
    assert _ask(tmp_path) == event


@pytest.mark.parametrize(
    "body", ["os.read(channel, 1)\n", "while True: os.read(channel, 0)\n"]
)
def test_a_liar_that_keeps_silent(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    _liar(monkeypatch, HONEST + body)
    assert _ask(tmp_path, seconds=2) in ("reader.run.time", "reader.run.ended")


def test_another_program_than_the_expected_does_not_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    expected = program.digest()
    source = File(disk)
    assert run(source, "all", (), None, expected)
    started = tmp_path / "started"
    _liar(monkeypatch, f"open({str(started)!r}, 'w')\n" + HONEST)
    with pytest.raises(Denied) as caught:
        run(source, "all", (), None, expected)
    assert caught.value.event == "reader.program.digest"
    assert not started.exists()
    source.close()


def test_a_changed_library_is_another_program(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = program.digest()
    real = program._library

    def library(module: str) -> int:
        if module != "pyfsxfs":
            return real(module)
        copy = tmp_path / "library"
        fd = real(module)
        data = os.pread(fd, 64 << 20, 0)
        os.close(fd)
        copy.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        return os.open(copy, os.O_RDONLY)

    monkeypatch.setattr(program, "_library", library)
    assert program.digest() != before


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(program.LIBRARIES, "xfs", "pyfsxfs_none")
    with pytest.raises(Unavailable) as caught:
        program.digest()
    assert caught.value.event == "reader.program.library"


def test_environment_and_user_files_do_not_reach_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONINSPECT", "1")
    monkeypatch.chdir(tmp_path)
    assert _ask(tmp_path) == "ok"

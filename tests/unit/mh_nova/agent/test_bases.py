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
"""Files that grow, are replaced, are touched, are written to."""

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from mh_core.errors import Denied, MHError, NotFound, Unavailable
from mh_nova.agent import bases as bases_module
from mh_nova.agent.bases import Bases
from mh_nova.agent.hashing import GrowingHash
from mh_nova.agent.paths import PART, Root, base_name
from mh_nova.agent.store import BaseRecord, Store

IMAGE = str(uuid.uuid4())
NAME = base_name(IMAGE)
DATA = os.urandom(3_000_001)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Host:
    def __init__(self, folder: Path) -> None:
        self.root = Root(str(folder / "instances"))
        self.directory = folder / "instances" / "_base"
        self.directory.mkdir(parents=True)
        self.base = self.directory / NAME
        self.part = self.directory / (NAME + PART)
        self.store = Store(folder / "state")
        self.bases = Bases(self.root, self.store)

    def restart(self, believe: bool = True) -> None:
        self.bases.close()
        self.bases = Bases(self.root, self.store, believe)

    def digest(self) -> str:
        with self.bases.base(IMAGE) as hashed:
            return hashed.sha256

    def adopt(self) -> None:
        self.bases.follow(IMAGE, "one")
        self.part.write_bytes(DATA)
        self.bases.downloaded(IMAGE)
        with self.bases.candidate(IMAGE, 10) as hashed:
            assert hashed.sha256 == SHA256
            self.bases.adopt(IMAGE, hashed)
        self.bases.leave(IMAGE, "one")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.bases.close()


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a base was hashed in full."""
    count: list[int] = []
    real = bases_module.read_through

    def counted(fd: int) -> object:
        count.append(fd)
        return real(fd)

    monkeypatch.setattr(bases_module, "read_through", counted)
    return count


# -- growing -------------------------------------------------------------


def growing(host: Host) -> GrowingHash:
    one = GrowingHash(host.root, NAME + PART)
    one.start()
    return one


def test_in_pieces(host: Host) -> None:
    one = growing(host)
    with host.part.open("wb") as file:
        for start in range(0, len(DATA), 300_000):
            file.write(DATA[start : start + 300_000])
            file.flush()
            time.sleep(0.005)
    one.complete()
    hashed = one.wait(5)
    assert (hashed.size, hashed.sha256) == (len(DATA), SHA256)
    one.stop()


def test_appears_late(host: Host) -> None:
    one = growing(host)
    time.sleep(0.05)
    host.part.write_bytes(DATA)
    one.complete()
    assert one.wait(5).sha256 == SHA256
    one.stop()


def test_replaced_by_another_file(host: Host) -> None:
    one = growing(host)
    host.part.write_bytes(b"x" * len(DATA))
    time.sleep(0.05)
    host.part.unlink()
    host.part.write_bytes(DATA)
    one.complete()
    assert one.wait(5).sha256 == SHA256
    one.stop()


def test_begun_again(host: Host) -> None:
    one = growing(host)
    host.part.write_bytes(b"x" * 100_000)
    time.sleep(0.05)
    os.truncate(host.part, 0)
    time.sleep(0.05)
    host.part.write_bytes(DATA)
    one.complete()
    assert one.wait(5).sha256 == SHA256
    one.stop()


def test_complete_but_not_there(host: Host) -> None:
    one = growing(host)
    one.complete()
    with pytest.raises(NotFound):
        one.wait(5)
    one.stop()


def test_never_complete(host: Host) -> None:
    host.part.write_bytes(DATA)
    one = growing(host)
    with pytest.raises(Unavailable):
        one.wait(0.1)
    one.stop()


def test_stalls(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mh_nova.agent.hashing._IDLE", 0.05)
    one = growing(host)
    with pytest.raises(Unavailable) as caught:
        one.wait(5)
    assert caught.value.event == "agent.hash.idle"
    one.stop()


def test_no_descriptor_is_left(host: Host) -> None:
    before = len(os.listdir("/proc/self/fd"))
    host.part.write_bytes(DATA)
    one = growing(host)
    one.complete()
    one.wait(5)
    one.stop()
    assert len(os.listdir("/proc/self/fd")) == before


# -- bases ---------------------------------------------------------------


def test_adopted_and_known(host: Host, hashes: list[int]) -> None:
    host.adopt()
    assert host.base.read_bytes() == DATA
    assert not host.part.exists()
    assert host.base.stat().st_mode & 0o777 == 0o444
    assert host.digest() == SHA256
    assert not hashes


def test_touched_by_the_image_cache(host: Host, hashes: list[int]) -> None:
    """nova sets the times on every pass; the lease says: same content."""
    host.adopt()
    os.utime(host.base)
    assert host.digest() == SHA256
    os.utime(host.base, (0, 0))
    assert host.digest() == SHA256
    assert not hashes


def test_known_after_a_restart(host: Host, hashes: list[int]) -> None:
    host.adopt()
    host.restart()
    assert host.digest() == SHA256
    assert not hashes


def test_hashed_again_once_after_a_restart(
    host: Host, hashes: list[int]
) -> None:
    host.adopt()
    host.restart(believe=False)
    for _ in range(3):
        assert host.digest() == SHA256
    assert len(hashes) == 1


@pytest.mark.parametrize("believe", [False, True])
def test_changed_on_disk_with_all_that_is_recorded_forged(
    host: Host, believe: bool
) -> None:
    """As with the disk in hand while the host is off: content, times and
    the agent's own record of them."""
    host.adopt()
    host.bases.close()
    changed = b"z" + DATA[1:]
    status = host.base.stat()
    host.base.write_bytes(changed)
    os.utime(host.base, ns=(status.st_atime_ns, status.st_mtime_ns))
    fd = os.open(host.base, os.O_RDONLY)
    host.store.save_base(NAME, BaseRecord.of(fd, SHA256))
    os.close(fd)
    host.restart(believe)
    found = SHA256 if believe else hashlib.sha256(changed).hexdigest()
    assert host.digest() == found


def test_touched_while_the_agent_was_away(
    host: Host, hashes: list[int]
) -> None:
    host.adopt()
    host.restart()
    os.utime(host.base, (0, 0))
    assert host.digest() == SHA256
    assert len(hashes) == 1


def test_touched_before_a_restart(host: Host, hashes: list[int]) -> None:
    """The record follows the times as long as the lease holds."""
    host.adopt()
    os.utime(host.base, (0, 0))
    host.digest()
    host.restart()
    assert host.digest() == SHA256
    assert not hashes


def test_written_to(host: Host) -> None:
    """The writer waits for the lease; afterwards the digest is new."""
    host.adopt()
    looked = threading.Event()

    def write() -> None:
        with host.base.open("r+b") as file:
            file.write(b"changed")
            looked.wait(5)

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.1)
    # the lease is being broken: the agent gives it up and hashes again
    assert not bases_module.holds(host.bases._held[NAME].fd)
    with pytest.raises(Denied) as caught:
        host.digest()
    assert caught.value.event == "agent.measure.writer"
    looked.set()
    writer.join(5)
    assert not writer.is_alive()
    changed = b"changed" + DATA[7:]
    assert host.digest() == hashlib.sha256(changed).hexdigest()


def test_written_to_while_the_agent_was_away(host: Host) -> None:
    host.adopt()
    host.restart()
    status = host.base.stat()
    host.base.write_bytes(b"y" + DATA[1:])
    os.utime(host.base, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert host.digest() == hashlib.sha256(b"y" + DATA[1:]).hexdigest()


def test_replaced(host: Host) -> None:
    host.adopt()
    other = host.directory / "other"
    other.write_bytes(b"other")
    other.rename(host.base)
    assert host.digest() == hashlib.sha256(b"other").hexdigest()


def test_open_for_writing(host: Host) -> None:
    host.base.write_bytes(DATA)
    with host.base.open("r+b"), pytest.raises(Denied) as caught:
        host.digest()
    assert caught.value.event == "agent.measure.writer"
    assert host.digest() == SHA256


def test_removed_by_the_image_cache(host: Host) -> None:
    host.adopt()
    before = len(os.listdir("/proc/self/fd"))
    host.base.unlink()
    host.bases.prune()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    with pytest.raises(NotFound):
        host.digest()
    assert host.store.base(NAME) is None


def test_part_replaced_after_the_hash(host: Host) -> None:
    host.bases.follow(IMAGE, "one")
    host.part.write_bytes(DATA)
    host.bases.downloaded(IMAGE)
    with host.bases.candidate(IMAGE, 10) as hashed:
        host.part.unlink()
        host.part.write_bytes(b"other")
        with pytest.raises(Denied):
            host.bases.adopt(IMAGE, hashed)
    assert not host.base.exists()


def test_part_grew_after_the_hash(host: Host) -> None:
    host.bases.follow(IMAGE, "one")
    host.part.write_bytes(DATA)
    host.bases.downloaded(IMAGE)
    with host.bases.candidate(IMAGE, 10) as hashed:
        with host.part.open("ab") as file:
            file.write(b"more")
        with pytest.raises(Denied):
            host.bases.adopt(IMAGE, hashed)
    assert not host.base.exists()


def test_left_over_part(host: Host) -> None:
    """Of a download that nobody follows: a new one is a new file."""
    host.part.write_bytes(b"old" * 10000)
    host.bases.follow(IMAGE, "one")
    assert not host.part.exists()


def test_damaged_record(host: Host, hashes: list[int]) -> None:
    host.adopt()
    host.restart()
    path = host.store.root / "bases" / f"{NAME}.json"
    path.write_text("{")
    assert host.digest() == SHA256
    assert len(hashes) == 1


def test_link(host: Host, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(DATA)
    host.base.symlink_to(tmp_path / "secret")
    with pytest.raises(MHError) as caught:
        host.digest()
    assert caught.value.event == "agent.path.link"


def test_a_dead_launch_does_not_fail_the_next(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its nova-compute died amid the download; its hash gave up."""
    monkeypatch.setattr("mh_nova.agent.hashing._IDLE", 0.0)
    host.bases.follow(IMAGE, "dead")
    with pytest.raises(Unavailable), host.bases.candidate(IMAGE, 5):
        pass
    monkeypatch.undo()
    host.adopt()
    assert host.digest() == SHA256


def test_a_writer_that_is_about_to_go(tmp_path: Path) -> None:
    """A fork of who wrote it, before its exec; another one is refused."""
    path = tmp_path / "base"
    path.write_bytes(DATA)
    writer = os.open(path, os.O_WRONLY)
    reader = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(Denied) as caught:
            bases_module.lease(reader)
        assert caught.value.event == "agent.measure.writer"
        threading.Timer(0.2, os.close, [writer]).start()
        bases_module.lease(reader)
        assert bases_module.holds(reader)
    finally:
        os.close(reader)


def test_a_writer_that_wrote_while_it_was_waited_for(host: Host) -> None:
    """What was hashed is no longer what is there, of the same size."""
    host.bases.follow(IMAGE, "one")
    host.part.write_bytes(DATA)
    host.bases.downloaded(IMAGE)
    writer = os.open(host.part, os.O_WRONLY)

    def write() -> None:
        os.pwrite(writer, b"other", 4096)
        os.close(writer)

    with host.bases.candidate(IMAGE, 10) as hashed:
        timer = threading.Timer(0.2, write)
        timer.start()
        with pytest.raises(Denied) as caught:
            host.bases.adopt(IMAGE, hashed)
        timer.join()
    assert caught.value.event == "agent.measure.writer"
    assert not host.base.exists()

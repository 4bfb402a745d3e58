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
"""The leak search finds what it must, where it must, and nothing else."""

import base64
import errno
import json
import os
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_core.errors import VerificationError
from mh_core.image import luks1, overlay
from tests.minicloud.search import (
    Hit,
    Needle,
    Search,
    SearchError,
    key_needles,
    libvirt,
    libvirt_secrets,
    luks_master_keys,
    plant,
)
from tests.minicloud.search import search as module
from tests.minicloud.search.needle import Matcher, Needles, encodings

KEY = Needle("key", bytes(range(7, 39)))
TEXT = Needle("text", 'a "quoted" line\\ with é'.encode())


def search(
    root: Path, needles: Sequence[Needle] = (KEY,), **more: Any
) -> Search:
    """Below the root alone: others work on the machine meanwhile."""
    exclude = more.pop("exclude", ())
    return Search([root], exclude, needles, everywhere=False, **more)


def run(root: Path, *needles: Needle, **more: Any) -> list[Hit]:
    return search(root, needles or (KEY,), **more).run()


def places(root: Path, *needles: Needle) -> set[tuple[str, str]]:
    return {
        (hit.encoding, Path(hit.place.split(" at ")[0]).name)
        for hit in run(root, *needles)
    }


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_matcher_is_find(data: st.DataObject) -> None:
    small = st.binary(min_size=15, max_size=40)
    patterns = data.draw(st.lists(small, min_size=1, max_size=6, unique=True))
    pieces = data.draw(
        st.lists(st.one_of(st.binary(max_size=20), st.sampled_from(patterns)))
    )
    hay = b"".join(pieces)
    expected = set()
    for number, pattern in enumerate(patterns):
        at = hay.find(pattern)
        while at >= 0:
            expected.add((number, at))
            at = hay.find(pattern, at + 1)
    assert set(Matcher(patterns).find(hay)) == expected


@settings(max_examples=200, deadline=None)
@given(
    st.binary(min_size=16, max_size=64),
    st.binary(max_size=20),
    st.binary(max_size=20),
)
def test_whatever_stands_around(
    data: bytes, before: bytes, after: bytes
) -> None:
    needles = Needles([Needle("n", data)])
    whole = before + data + after

    def found(text: bytes) -> set[str]:
        return {
            encoding
            for form, _at in needles.find(text)
            for _name, encoding in needles.tags[form]
        }

    assert "raw" in found(whole)
    assert "hex" in found(whole.hex().encode())
    assert "HEX" in found(whole.hex().upper().encode()) or (
        data.hex() == data.hex().upper()
    )
    assert "base64" in found(base64.b64encode(whole))
    assert "base64url" in found(base64.urlsafe_b64encode(whole))
    assert "base64 of hex" in found(base64.b64encode(whole.hex().encode()))
    assert "hex, colons" in found(whole.hex(":").encode())
    assert "decimal" in found(json.dumps(list(whole)).encode())


def test_text_forms() -> None:
    needles = Needles([TEXT])
    text = TEXT.data.decode()
    for written, name in (
        (json.dumps({"a": text}).encode(), "JSON"),
        (json.dumps({"a": text}, ensure_ascii=False).encode(), "JSON"),
        (text.encode("utf-16-le"), "UTF-16"),
    ):
        tags = [needles.tags[form] for form, _at in needles.find(written)]
        assert [(TEXT.name, name)] in tags


def test_needle_says_nothing() -> None:
    assert "0708" not in repr(KEY)
    assert str(KEY.data) not in repr(KEY)
    with pytest.raises(ValueError, match="16 octets"):
        Needle("short", b"x" * 15)


def test_nothing_to_find(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(1 << 20))
    (tmp_path / "b").write_bytes(KEY.data[:-1])
    (tmp_path / "c").touch()
    assert run(tmp_path, KEY, TEXT) == []


def test_every_encoding_in_a_file(tmp_path: Path) -> None:
    for number, (encoding, forms) in enumerate(encodings(KEY).items()):
        for form in forms:
            path = tmp_path / encoding
            with path.open("ab") as file:
                file.write(b"." * (number + 1) + form)
    got = places(tmp_path)
    assert {(name, name) for name in encodings(KEY)} <= got


def test_planted_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with plant([folder, tmp_path]) as planted:
        hits = run(tmp_path, KEY, *planted.needles)
        assert planted.missing(hits) == []
        assert planted.others(hits) == []
        if os.geteuid() == 0:
            assert any(hit.memory for hit in hits)
        # the proof proves: less searched, and it says so
        less = run(tmp_path, KEY, *planted.needles, exclude=[folder])
        assert len(planted.missing(less)) > 10
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_leak_beside_planted(tmp_path: Path) -> None:
    (tmp_path / "leak").write_bytes(KEY.data)
    with plant([tmp_path]) as planted:
        hits = run(tmp_path, KEY, *planted.needles)
    assert [hit.place for hit in planted.others(hits)] == [
        f"{tmp_path}/leak at 0"
    ]


def test_over_the_edge_of_a_read(tmp_path: Path) -> None:
    for shift in range(-40, 9, 8):
        with (tmp_path / f"edge{shift}").open("wb") as file:
            file.write(os.urandom(module._CHUNK + 4096))
            file.seek(module._CHUNK + shift)
            file.write(KEY.data)
    hits = run(tmp_path)
    assert len(hits) == 7
    assert {int(hit.place.split(" at ")[1]) for hit in hits} == {
        module._CHUNK + shift for shift in range(-40, 9, 8)
    }


def test_zeros_that_go_on_in_a_hole(tmp_path: Path) -> None:
    needle = Needle("zeros", bytes(range(1, 21)) + bytes(20))
    with (tmp_path / "sparse").open("wb") as file:
        file.seek((1 << 20) - 20)
        file.write(needle.data[:20])
        file.truncate(1 << 30)
    looked = search(tmp_path, [needle])
    assert len(looked.run()) == 1
    assert looked.octets < 1 << 21


def test_exclude_links_and_pipes(tmp_path: Path) -> None:
    station = tmp_path / "workstation"
    station.mkdir()
    (station / "key").write_bytes(KEY.data)
    (tmp_path / "link").symlink_to(station / "key")
    (tmp_path / "folder").symlink_to(station)
    os.mkfifo(tmp_path / "pipe")
    assert run(tmp_path, exclude=(station,)) == []
    assert len(run(tmp_path)) == 1


def test_written_since(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(KEY.data)
    changed = path.stat().st_ctime
    for since, count in ((changed, 1), (changed + 10, 0)):
        assert len(run(tmp_path, since=since)) == count


def test_enough_is_enough(tmp_path: Path) -> None:
    (tmp_path / "many").write_bytes(KEY.data * 1000)
    assert len(run(tmp_path)) == 3


def test_out_of_time_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "some").write_bytes(b"x" * 100)
    with pytest.raises(SearchError):
        run(tmp_path, timeout=-1)


def test_unreadable_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad"
    path.write_bytes(KEY.data)
    real = os.open

    def fails(name: str, *more: int) -> int:
        if name == str(path):
            raise OSError(errno.EIO, "Input/output error")
        return real(name, *more)

    monkeypatch.setattr(os, "open", fails)
    looked = search(tmp_path)
    assert looked.run() == []
    assert f"{path}: Input/output error" in looked.unreadable


def guest(folder: Path, secret: bytes, *, plain: bool = False) -> None:
    key, iv = os.urandom(32), os.urandom(16)
    line = libvirt.seal(key, iv, secret)
    if plain:
        members = json.loads(line)
        line = (
            f"secret,id=s0,data={members['data']},keyid=masterKey0,"
            f"iv={members['iv']},format=base64"
        )
    (folder / "guest.log").write_text(f"-object '{line}' \\\n-machine x\n")
    (folder / "domain-1-x").mkdir()
    (folder / "domain-1-x" / "master-key.aes").write_bytes(key)


@pytest.mark.parametrize("plain", [False, True])
def test_libvirt_secret_opens(tmp_path: Path, plain: bool) -> None:
    guest(tmp_path, KEY.data.hex().encode(), plain=plain)
    (hit,) = run(tmp_path)
    assert (hit.needle, hit.encoding) == ("key", "sealed hex")
    assert "guest.log, opened with" in hit.place
    assert KEY.data.hex().encode() in libvirt_secrets(
        [tmp_path], everywhere=False
    )


def test_libvirt_other_key(tmp_path: Path) -> None:
    guest(tmp_path, KEY.data.hex().encode())
    path = tmp_path / "domain-1-x" / "master-key.aes"
    path.write_bytes(os.urandom(32))
    assert run(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")
def test_libvirt_key_on_tmpfs(tmp_path: Path) -> None:
    guest(tmp_path, KEY.data.hex().encode())
    key = tmp_path / "domain-1-x" / "master-key.aes"
    script = (
        'mount -t tmpfs t "$1" && cat > "$1/master-key.aes" && echo r &&'
        " exec sleep 60"
    )
    child = subprocess.Popen(
        ["/usr/bin/unshare", "--mount", "--propagation", "private"]
        + ["/bin/sh", "-c", script, "sh", key.parent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdin
        assert child.stdout
        child.stdin.write(key.read_bytes())
        child.stdin.close()
        assert child.stdout.readline() == b"r\n"
        key.unlink()
        assert run(tmp_path) == []
        # as a control: the key in memory does open it
        control = run(tmp_path, memory_keys=True)
        assert [hit.encoding for hit in control] == ["sealed hex"]
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def image(path: Path, key: bytes, backing: tuple[str, str] | None) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    overlay.write(fd, 1 << 20, key, uuid.uuid4(), os.urandom, backing)
    os.close(fd)


def test_master_keys(tmp_path: Path) -> None:
    key = os.urandom(32)
    area, master = luks1.build(luks1.passphrase(key), uuid.uuid4(), os.urandom)
    (tmp_path / "raw").write_bytes(area)
    phrase = luks1.passphrase(key)
    assert luks_master_keys(tmp_path / "raw", phrase) == [
        master,
        master[:32],
        master[32:],
    ]
    image(tmp_path / "disk", key, None)
    whole = luks_master_keys(tmp_path / "disk", phrase)[0]
    assert len(whole) == 64
    with pytest.raises(VerificationError):
        luks_master_keys(tmp_path / "disk", b"another")
    names = [n.name for n in key_needles("DEK", key, tmp_path / "disk")]
    assert names == [
        "DEK",
        "DEK passphrase",
        "DEK LUKS master key of disk",
        "DEK LUKS master key of disk, half 1",
        "DEK LUKS master key of disk, half 2",
    ]
    # neither file shows its own keys
    needles = key_needles("DEK", key, tmp_path / "disk", tmp_path / "raw")
    assert run(tmp_path, *needles) == []

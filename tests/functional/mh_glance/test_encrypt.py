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
"""Encryption with the real qemu-img; qemu and cryptsetup are the judges."""

import base64
import io
import os
import secrets
import subprocess
import threading
import time
from pathlib import Path

import pytest

from mh_core.errors import InputError, MHError
from mh_core.image import luks1, qcow2
from mh_core.secret import Secret
from mh_glance import encrypt, inspect
from mh_glance.progress import Bar

MARKER = b"marker:5e1f0c77d2a14b0c9be2"
SIZE = 8 << 20


@pytest.fixture
def key() -> Secret:
    return Secret(secrets.token_bytes(32))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Some data, a hole, and some data."""
    path = tmp_path / "plain.raw"
    with path.open("wb") as out:
        out.write(MARKER * 1000)
        out.seek(SIZE - (1 << 20))
        out.write(secrets.token_bytes(1 << 20))
    return path


def tool(*words: object) -> str:
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def options(path: str | Path) -> str:
    return f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"


def secret(key: Secret, folder: Path) -> str:
    path = folder / "passphrase"
    path.write_bytes(luks1.passphrase(key.reveal()))
    return f"secret,id=s,file={path}"


def same(key: Secret, made: str, plain: Path, form: str, tmp: Path) -> bool:
    """Does qemu-img read the same from both?"""
    done = subprocess.run(
        [
            *("qemu-img", "compare", "--object", secret(key, tmp)),
            *("--image-opts", options(made) + ",encrypt.format=luks"),
            f"driver={form},file.filename={plain}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def test_raw(source: Path, key: Secret, tmp_path: Path) -> None:
    made = encrypt.encrypt(str(source), str(tmp_path / "out"), key)
    data = Path(made.path).read_bytes()
    assert MARKER not in data
    assert (made.size, made.virtual_size) == (len(data), SIZE)
    # the hole stayed one
    assert made.size < 4 << 20
    assert same(key, made.path, source, "raw", tmp_path)
    tool("qemu-img", "check", "--object", secret(key, tmp_path),
         "--image-opts", options(made.path))  # fmt: skip
    assert Path(made.path).stat().st_mode & 0o777 == 0o600
    digests = tool("sha256sum", made.path), tool("sha512sum", made.path)
    assert [d.split()[0] for d in digests] == [made.sha256, made.sha512]


@pytest.mark.parametrize("form", ["qcow2", "vmdk", "vdi", "vpc", "vhdx"])
def test_other_formats(
    source: Path, key: Secret, tmp_path: Path, form: str
) -> None:
    plain = tmp_path / "plain"
    tool("qemu-img", "convert", "-f", "raw", "-O", form, source, plain)
    made = encrypt.encrypt(str(plain), str(tmp_path / "out"), key)
    assert MARKER not in Path(made.path).read_bytes()
    assert same(key, made.path, plain, form, tmp_path)


def test_another_key_opens_nothing(
    source: Path, key: Secret, tmp_path: Path
) -> None:
    made = encrypt.encrypt(str(source), str(tmp_path / "out"), key)
    other = Secret(secrets.token_bytes(32))
    done = subprocess.run(
        [
            *("qemu-img", "check", "--object", secret(other, tmp_path)),
            *("--image-opts", options(made.path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "Invalid password" in done.stderr


def test_cryptsetup_agrees(source: Path, key: Secret, tmp_path: Path) -> None:
    made = encrypt.encrypt(str(source), str(tmp_path / "out"), key)
    with open(made.path, "rb") as stream:
        header, luks = qcow2.inspect(stream.fileno())
        area = qcow2.read_luks(stream.fileno(), header)
    assert str(luks.uuid) == made.luks_uuid
    raw = tmp_path / "header"
    raw.write_bytes(area + bytes(1 << 20))
    argv = ["cryptsetup", "open", "--test-passphrase", "--key-file=-", raw]
    good = luks1.passphrase(key.reveal())
    for word, status in ((good, 0), (b"0" * 64, 2)):
        done = subprocess.run(
            argv, input=word, capture_output=True, check=False
        )
        assert done.returncode == status, done.stderr


def _watch(seen: list[bytes], stop: threading.Event) -> None:
    """Arguments and environment of every child that is there."""
    me = os.getpid()
    while not stop.is_set():
        try:
            text = Path(f"/proc/{me}/task/{me}/children").read_text()
        except OSError:
            text = ""
        for child in text.split():
            for name in ("cmdline", "environ"):
                try:
                    seen.append(Path(f"/proc/{child}/{name}").read_bytes())
                except OSError:
                    continue
        time.sleep(0.001)


def test_the_tool_is_told_no_key(
    key: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OS_PASSWORD", "the-cloud-password")
    source = tmp_path / "big.raw"
    source.write_bytes(secrets.token_bytes(48 << 20))
    seen: list[bytes] = []
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(seen, stop))
    watcher.start()
    try:
        encrypt.encrypt(str(source), str(tmp_path / "out"), key)
    finally:
        stop.set()
        watcher.join()
    assert any(b"qemu-img\0convert" in text for text in seen)
    raw = key.reveal()
    needles = (
        raw,
        raw.hex().encode(),
        base64.b64encode(raw),
        base64.urlsafe_b64encode(raw).rstrip(b"="),
        b"the-cloud-password",
    )
    own = Path(f"/proc/{os.getpid()}/environ").read_bytes()
    for text in seen:
        # between fork and exec a child is still a copy of this process
        if text != own:
            assert not any(needle in text for needle in needles)


def test_progress(source: Path, key: Secret, tmp_path: Path) -> None:
    stream = io.StringIO()
    encrypt.encrypt(
        str(source),
        str(tmp_path / "out"),
        key,
        convert_progress=Bar(stream, "encrypt"),
        hash_progress=Bar(stream, "hash"),
    )
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["encrypt", "hash"]
    assert all("100%" in line for line in lines)


def refused(plain: Path, key: Secret, tmp_path: Path) -> str:
    with pytest.raises(InputError) as caught:
        encrypt.encrypt(str(plain), str(tmp_path / "out"), key)
    assert not (tmp_path / "out").exists()
    return caught.value.event


def test_files_that_name_others(
    source: Path, key: Secret, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", source, "-F", "raw",
         plain)  # fmt: skip
    assert refused(plain, key, tmp_path) == "client.image.backing"
    plain.unlink()
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o",
         f"data_file={tmp_path}/data", plain, "1M")  # fmt: skip
    assert refused(plain, key, tmp_path) == "client.image.data-file"
    for kind in ("monolithicFlat", "twoGbMaxExtentSparse"):
        plain = tmp_path / f"{kind}.vmdk"
        tool("qemu-img", "create", "-q", "-f", "vmdk", "-o",
             f"subformat={kind}", plain, "1M")  # fmt: skip
        assert refused(plain, key, tmp_path).startswith("client.image.")


def test_an_encrypted_image_is_not_encrypted_again(
    source: Path, key: Secret, tmp_path: Path
) -> None:
    made = encrypt.encrypt(str(source), str(tmp_path / "once"), key)
    assert refused(Path(made.path), key, tmp_path) == "client.image.encrypted"


def test_a_tool_that_fails_leaves_its_words(
    source: Path,
    key: Secret,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the source turns out larger than what was inspected
    monkeypatch.setattr(
        encrypt, "inspect", lambda fd, form: inspect.Source("raw", 512)
    )
    with pytest.raises(MHError) as caught:
        encrypt.encrypt(str(source), str(tmp_path / "out"), key)
    assert caught.value.event == "client.encrypt.qemu-img"
    assert key.reveal().hex() not in str(caught.value)


def test_the_work_folder_is_private_and_goes(source: Path) -> None:
    with encrypt.work_dir(str(source)) as folder:
        assert Path(folder).parent == source.parent
        assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert not Path(folder).exists()

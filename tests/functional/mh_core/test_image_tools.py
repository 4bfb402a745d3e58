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

"""qemu-img, qemu-io and cryptsetup judge what mh_core.image writes."""

import json
import os
import shutil
import subprocess
import time
import uuid
import zlib

import pytest

from mh_core import errors
from mh_core.image import afsplit, luks1, mapping, overlay, qcow2

MISSING = [
    tool
    for tool in ("qemu-img", "qemu-io", "cryptsetup")
    if shutil.which(tool) is None
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {MISSING}")

MIB = 1 << 20
SIZE = 64 * MIB
MODES = ["xts-plain64", "cbc-essiv:sha256"]
TOP, BASE, OTHER = bytes(range(32)), bytes(range(1, 33)), b"o" * 32


def tool(*command, keys=None, attempts=1):
    """Run a tool; ``{name}`` becomes /dev/fd/N with that passphrase.

    qemu-img fails at random in its PBKDF2 calibration: ``attempts``.
    """
    for _ in range(attempts):
        places, descriptors = {}, []
        for name, key in (keys or {}).items():
            fd = os.memfd_create(name)
            os.write(fd, key)
            os.lseek(fd, 0, os.SEEK_SET)
            places["{" + name + "}"] = f"/dev/fd/{fd}"
            descriptors.append(fd)
        words = []
        for word in command:
            for name, place in places.items():
                word = word.replace(name, place)
            words.append(word)
        done = subprocess.run(
            words,
            pass_fds=descriptors,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for fd in descriptors:
            os.close(fd)
        if "accurate CPU usage" not in done.stderr:
            break
        time.sleep(0.2)
    return done


def secrets(*names):
    return [
        word
        for name in names
        for word in ("--object", f"secret,id={name},file={{{name}}}")
    ]


def options(path, name, prefix=""):
    return (
        f"{prefix}driver=qcow2,{prefix}encrypt.format=luks,"
        f"{prefix}encrypt.key-secret={name},{prefix}file.driver=file,"
        f"{prefix}file.filename={path}"
    )


def qemu_io(image, *commands, names=("top",), keys=None):
    words = [word for command in commands for word in ("-c", command)]
    return tool(
        *("qemu-io", *secrets(*names), "--image-opts", *words, image),
        keys=keys or {"top": luks1.passphrase(TOP)},
    )


def write(path, key, backing=None, mode="xts-plain64", size=SIZE):
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        overlay.write(fd, size, key, uuid.uuid4(), os.urandom, backing, mode)
    finally:
        os.close(fd)


def inspect(path):
    """(qcow2 header, LUKS header, LUKS area)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        header, luks = qcow2.inspect(fd)
        return header, luks, qcow2.read_luks(fd, header)
    finally:
        os.close(fd)


def failed(done):
    return done.returncode != 0 or "failed" in done.stdout


@pytest.fixture(params=MODES)
def chain(request, tmp_path):
    """An overlay over a base of each mode; the base has a pattern."""
    base, top = str(tmp_path / "base"), str(tmp_path / "top")
    write(base, BASE, mode=request.param)
    done = qemu_io(
        options(base, "top"),
        *("write -P 0x5a 1M 1M", "write -P 0x77 40M 64k"),
        keys={"top": luks1.passphrase(BASE)},
    )
    assert not failed(done), done.stderr
    write(top, TOP, (base, "qcow2"))
    return base, top


def test_chain(chain):
    base, top = chain
    image = options(top, "top") + "," + options(base, "base", "backing.")
    keys = {"top": luks1.passphrase(TOP), "base": luks1.passphrase(BASE)}
    before = open(base, "rb").read()  # noqa: SIM115
    done = qemu_io(
        image,
        *("read -P 0x5a 1M 1M", "write -P 0x33 1536k 64k"),
        *("read -P 0x33 1536k 64k", "read -P 0x5a 1M 512k"),
        *("read -P 0 8M 1M", "read -P 0x77 40M 64k"),
        names=("top", "base"),
        keys=keys,
    )
    assert not failed(done), done.stdout + done.stderr
    assert open(base, "rb").read() == before  # noqa: SIM115
    for place, backing in ((top, (base, "qcow2")), (base, None)):
        header, _, _ = inspect(place)
        qcow2.check(header, backing=backing, virtual_size=SIZE)
        content = open(place, "rb").read()  # noqa: SIM115
        assert b"\x5a" * 64 not in content
        assert b"\x33" * 64 not in content
    done = tool(
        *("qemu-img", "check", "--output=json", *secrets("top", "base")),
        *("--image-opts", image),
        keys=keys,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for wrong in ("top", "base"):
        done = qemu_io(
            image,
            "read 0 512",
            names=("top", "base"),
            keys=keys | {wrong: luks1.passphrase(OTHER)},
        )
        assert failed(done)
        assert "cannot unlock any keyslot" in done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_qemu_img_judges(tmp_path, mode):
    path = str(tmp_path / "disk")
    write(path, TOP, mode=mode, size=100 << 30)
    _, luks, _ = inspect(path)
    done = tool("qemu-img", "info", "--output=json", path)
    info = json.loads(done.stdout)
    assert info["virtual-size"] == 100 << 30
    assert info["encrypted"] is True
    crypt = info["format-specific"]["data"]["encrypt"]
    assert crypt["uuid"] == str(luks.uuid)
    assert crypt["payload-offset"] == luks.size
    assert [slot["active"] for slot in crypt["slots"]] == [True] + 7 * [False]
    done = tool(
        *("qemu-img", "check", "--output=json", *secrets("top")),
        *("--image-opts", options(path, "top")),
        keys={"top": luks1.passphrase(TOP)},
    )
    result = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "leaks" not in result
    assert result["image-end-offset"] == os.stat(path).st_size
    done = tool(
        *("qemu-img", "resize", "-q", *secrets("top"), "--image-opts"),
        *(options(path, "top"), "120G"),
        keys={"top": luks1.passphrase(TOP)},
    )
    assert done.returncode == 0, done.stderr
    header, _, _ = inspect(path)
    qcow2.check(header, backing=None, virtual_size=120 << 30)


@pytest.mark.parametrize("mode", MODES)
def test_cryptsetup_judges(tmp_path, mode):
    path = tmp_path / "disk"
    write(str(path), TOP, mode=mode)
    _, luks, area = inspect(str(path))
    raw = tmp_path / "luks"
    raw.write_bytes(area + bytes(MIB))
    done = tool("cryptsetup", "luksDump", str(raw))
    assert done.returncode == 0, done.stderr
    assert str(luks.uuid) in done.stdout
    assert mode in done.stdout
    test = ("cryptsetup", "open", "--test-passphrase", "--key-file", "{top}")
    for key, code in ((TOP, 0), (OTHER, 2)):
        done = tool(*test, str(raw), keys={"top": luks1.passphrase(key)})
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_unlock_headers_of_cryptsetup(tmp_path, mode):
    path = tmp_path / "luks"
    with open(path, "wb") as raw:
        raw.truncate(8 * MIB)
    bits = str(8 * afsplit.KEY_BYTES[mode])
    keys = {"one": luks1.passphrase(TOP), "two": luks1.passphrase(BASE)}
    once = ("--batch-mode", "--pbkdf-force-iterations", "1200")
    done = tool(
        *("cryptsetup", "luksFormat", "--type", "luks1", *once),
        *("--cipher", f"aes-{mode}", "--key-size", bits),
        *("--key-file", "{one}", str(path)),
        keys=keys,
    )
    assert done.returncode == 0, done.stderr
    done = tool(
        *("cryptsetup", "luksAddKey", *once),
        *("--key-file", "{one}", str(path), "{two}"),
        keys=keys,
    )
    assert done.returncode == 0, done.stderr
    area = path.read_bytes()
    header = luks1.parse(area)
    assert sum(slot.active for slot in header.slots) == 2
    master = luks1.unlock(area, keys["one"])
    assert luks1.unlock(area, keys["two"]) == master
    done = tool(
        *("cryptsetup", "luksDump", "--dump-master-key", "--batch-mode"),
        *("--key-file", "{one}", str(path)),
        keys=keys,
    )
    assert done.returncode == 0, done.stderr
    dumped = "".join(done.stdout.split("dump:")[1].split())
    assert bytes.fromhex(dumped) == master


def test_unlock_headers_of_qemu_img(tmp_path):
    path = str(tmp_path / "disk")
    done = tool(
        *("qemu-img", "create", "-q", "-f", "qcow2", *secrets("top")),
        *("-o", "encrypt.format=luks,encrypt.key-secret=top"),
        *("-o", "encrypt.iter-time=10", path, "64M"),
        keys={"top": luks1.passphrase(TOP)},
        attempts=20,
    )
    assert done.returncode == 0, done.stderr
    header, luks, area = inspect(path)
    qcow2.check(header, backing=None, virtual_size=SIZE)
    assert len(luks1.unlock(area, luks1.passphrase(TOP))) == luks.key_bytes


def test_data_into_a_header_of_ours(tmp_path):
    """qemu-img convert fills what overlay.write made."""
    source, path = tmp_path / "plain", str(tmp_path / "disk")
    source.write_bytes(os.urandom(MIB) + bytes(SIZE - MIB))
    write(path, TOP)
    done = tool(
        *("qemu-img", "convert", "-n", "-f", "raw", *secrets("top")),
        *("--target-image-opts", str(source), options(path, "top")),
        keys={"top": luks1.passphrase(TOP)},
    )
    assert done.returncode == 0, done.stderr
    done = tool(
        *("qemu-img", "compare", "-q", *secrets("top"), "--image-opts"),
        f"driver=raw,file.driver=file,file.filename={source}",
        options(path, "top"),
        keys={"top": luks1.passphrase(TOP)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    qcow2.check(inspect(path)[0], backing=None, virtual_size=SIZE)


def test_compressed_cluster_is_refused(tmp_path):
    """QEMU shows a compressed cluster without a key; mapping refuses it."""
    path = str(tmp_path / "disk")
    write(path, TOP)
    done = qemu_io(options(path, "top"), "write -P 0x5a 0 2M")
    assert not failed(done), done.stderr
    fd = os.open(path, os.O_RDWR)
    header = qcow2.read_header(fd)
    mapping.check(fd, header)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
    forged = deflate.compress(b"\x66" * 65536) + deflate.flush()
    assert len(forged) <= 512
    end = -(-os.fstat(fd).st_size // 65536) * 65536
    os.pwrite(fd, forged.ljust(65536, b"\0"), end)
    entry = os.pread(fd, 8, header.l1_offset)
    table = int.from_bytes(entry, "big") & ~(1 << 63)
    os.pwrite(fd, (1 << 62 | end).to_bytes(8, "big"), table)
    done = qemu_io(options(path, "top"), "read -P 0x66 0 64k")
    assert not failed(done), done.stdout
    with pytest.raises(errors.VerificationError) as caught:
        mapping.check(fd, header)
    assert caught.value.event == "core.image.qcow2.compressed"
    os.close(fd)

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
"""Every format that is taken, made by the tools that make them."""

import hashlib
import io
import os
import secrets
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from mh_core.errors import InputError
from mh_core.image import disk, luks1
from mh_core.secret import Secret
from mh_glance import encrypt, inspect
from mh_glance import ova as our_ova
from tests.functional.mh_glance.test_encrypt import (
    SIZE,
    key,
    refused,
    same,
    secret,
    source,
    tool,
)

__all__ = ["key", "source"]
MIB = 1 << 20
URL = "https://kms.example/v1/keys/0f1e2d3c-4b5a-4978-8675-645342312011"
MADE = {
    "qcow2-zlib": ("qcow2", "-c", "-o", "compression_type=zlib"),
    "qcow2-zstd": ("qcow2", "-c", "-o", "compression_type=zstd"),
    "qcow2-v2": ("qcow2", "-o", "compat=0.10"),
    "qcow2-small-clusters": ("qcow2", "-o", "cluster_size=512"),
    "vmdk-sparse": ("vmdk", "-o", "subformat=monolithicSparse"),
    "vmdk-stream": ("vmdk", "-o", "subformat=streamOptimized"),
    "vdi": ("vdi",),
    "vhd": ("vpc", "-o", "subformat=dynamic"),
    "vhd-fixed": ("vpc", "-o", "subformat=fixed"),
    "vhd-fixed-exact": ("vpc", "-o", "subformat=fixed,force_size=on"),
    "vhdx": ("vhdx",),
}


def make(source: Path, name: str, folder: Path) -> Path:
    form, *words = MADE[name]
    made = folder / name
    tool("qemu-img", "convert", "-f", "raw", "-O", form, *words, source, made)
    return made


@pytest.mark.parametrize("name", MADE)
def test_taken(source: Path, key: Secret, tmp_path: Path, name: str) -> None:
    plain = make(source, name, tmp_path)
    made = encrypt.encrypt(str(plain), str(tmp_path / "out"), key)
    assert same(key, made.path, plain, MADE[name][0], tmp_path)


def test_fixed_vhd_by_name(source: Path, key: Secret, tmp_path: Path) -> None:
    """Its footer is no part of the disk."""
    plain = make(source, "vhd-fixed-exact", tmp_path)
    made = encrypt.encrypt(str(plain), str(tmp_path / "out"), key, form="vhd")
    assert made.virtual_size == plain.stat().st_size - 512 == SIZE
    assert same(key, made.path, plain, "vpc", tmp_path)


@pytest.mark.parametrize(
    ("at", "byte"), [(0, b"C"), (55, b"\x01"), (63, b"\x03"), (90, b"\xff")]
)
def test_a_footer_that_is_not_one(
    source: Path, tmp_path: Path, at: int, byte: bytes
) -> None:
    """Name, size, kind and checksum: then it is a raw disk to its end, and
    no VHD."""
    plain = make(source, "vhd-fixed-exact", tmp_path)
    with plain.open("r+b") as file:
        file.seek(-512 + at, os.SEEK_END)
        file.write(byte)
    with plain.open("rb") as file:
        found = inspect.inspect(file.fileno())
        assert found.driver == "raw"
        assert found.part is None
        assert found.virtual_size == plain.stat().st_size
        with pytest.raises(InputError) as caught:
            inspect.inspect(file.fileno(), "vhd")
    assert caught.value.event == "client.image.format"


def iso(tmp_path: Path, source: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "data.bin").write_bytes(source.read_bytes()[:MIB])
    made = tmp_path / "cd.iso"
    tool("genisoimage", "-quiet", "-o", made, tree)
    return made


def test_iso(source: Path, key: Secret, tmp_path: Path) -> None:
    plain = iso(tmp_path, source)
    made = encrypt.encrypt(str(plain), str(tmp_path / "out"), key)
    assert made.virtual_size == plain.stat().st_size
    assert "hybrid" in made.note
    assert same(key, made.path, plain, "raw", tmp_path)


def test_ami(source: Path, key: Secret, tmp_path: Path) -> None:
    plain = tmp_path / "fs.img"
    plain.write_bytes(b"")
    os.truncate(plain, 8 * MIB)
    tool("mke2fs", "-q", "-F", "-t", "ext4", plain)
    made = encrypt.encrypt(str(plain), str(tmp_path / "out"), key, form="ami")
    assert "boot sector" in made.note
    assert same(key, made.path, plain, "raw", tmp_path)


def test_plain_ova(source: Path, key: Secret, tmp_path: Path) -> None:
    """As VirtualBox and ovftool write them: a VMDK read where it lies."""
    vmdk = make(source, "vmdk-stream", tmp_path)
    path = tmp_path / "appliance.ova"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (
            ("appliance.ovf", b"<Envelope/>"),
            ("appliance-disk1.vmdk", vmdk.read_bytes()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    before = set(tmp_path.iterdir())
    made = encrypt.encrypt(str(path), str(tmp_path / "out"), key)
    assert same(key, made.path, vmdk, "vmdk", tmp_path)
    # nothing was unpacked
    assert set(tmp_path.iterdir()) - before == {
        tmp_path / "out",
        tmp_path / "passphrase",
    }


def test_raw_luks(source: Path, key: Secret, tmp_path: Path) -> None:
    made = encrypt.encrypt(
        str(source), str(tmp_path / "out"), key, kind="luks"
    )
    assert (made.format, made.virtual_size) == ("luks", SIZE)
    done = subprocess.run(
        [
            *("qemu-img", "compare", "--object", secret(key, tmp_path)),
            *("--image-opts", "driver=luks,key-secret=s,"
              f"file.filename={made.path}"),
            f"driver=raw,file.filename={source}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_cryptsetup_opens_raw_luks(
    source: Path, key: Secret, tmp_path: Path
) -> None:
    made = encrypt.encrypt(
        str(source), str(tmp_path / "out"), key, kind="luks"
    )
    argv = ["cryptsetup", "open", "--test-passphrase", "--key-file=-"]
    done = subprocess.run(
        [*argv, made.path],
        input=luks1.passphrase(key.reveal()),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_sparse_stays_sparse(key: Secret, tmp_path: Path) -> None:
    """1 GiB with 9 MiB in it: what is uploaded is those and tables."""
    plain = tmp_path / "plain"
    with plain.open("wb") as out:
        for start in range(0, 1024 * MIB, 128 * MIB):
            out.seek(start)
            out.write(secrets.token_bytes(MIB))
        out.seek(1023 * MIB)
        out.write(secrets.token_bytes(MIB))
    made = encrypt.encrypt(str(plain), str(tmp_path / "out"), key)
    assert made.virtual_size == 1024 * MIB
    assert made.size < 9 * MIB + 3 * MIB
    assert Path(made.path).stat().st_blocks * 512 < 12 * MIB
    assert same(key, made.path, plain, "raw", tmp_path)


def test_our_ova(source: Path, key: Secret, tmp_path: Path) -> None:
    bare = encrypt.encrypt(str(source), str(tmp_path / "bare"), key)
    inner = Path(bare.path).read_bytes()
    made = our_ova.wrap(bare, str(tmp_path / "out.ova"), 'a & <"b">\n', URL)
    data = Path(made.path).read_bytes()
    assert (made.size, made.sha256) == (
        len(data),
        hashlib.sha256(data).hexdigest(),
    )
    inside = made.container
    assert inside is not None
    assert data[inside.offset : inside.offset + inside.size] == inner
    with tarfile.open(made.path) as tar:
        names = tar.getnames()
        stream = tar.extractfile("image.ovf")
        assert stream is not None
        envelope = stream.read()
    assert names == ["image.ovf", "image.mf", "disk.qcow2"]
    assert hashlib.sha256(envelope).hexdigest() == inside.envelope
    (file,) = etree.fromstring(envelope).iter("{*}File")
    assert (file.get("encrypted"), file.get("dekHref")) == ("true", URL)
    assert not Path(bare.path).exists()


# -- hostile -------------------------------------------------------------


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which tools were run by the inspection."""
    run: list[str] = []
    real = subprocess.run

    def note(argv: list[str], **more: object) -> object:
        run.append(str(argv[0]))
        return real(argv, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(inspect.subprocess, "run", note)
    return run


def test_descriptors_are_refused_before_a_tool(
    source: Path, key: Secret, tmp_path: Path, tools: list[str]
) -> None:
    """Made by qemu-img, then turned to name a file of the host's."""
    stolen = tmp_path / "stolen"
    stolen.write_bytes(b"root:" * 1000)
    flat = tmp_path / "flat.vmdk"
    tool("qemu-img", "create", "-q", "-f", "vmdk", "-o",
         "subformat=monolithicFlat", flat, "1M")  # fmt: skip
    sparse = make(source, "vmdk-sparse", tmp_path)
    backed = tmp_path / "backed"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b",
         stolen, backed)  # fmt: skip
    layered = tmp_path / "layered.vmdk"
    tool("qemu-img", "create", "-q", "-f", "vmdk", "-b", sparse, "-F",
         "vmdk", layered)  # fmt: skip
    del tools[:]
    text = flat.read_text().replace("flat-flat.vmdk", str(stolen))
    flat.write_text(text)
    assert refused(flat, key, tmp_path) == "client.image.extents"
    data = sparse.read_bytes()
    line = b'RW 16384 FLAT "' + str(stolen).encode() + b'" 0'
    start = data.index(b"RW 16384 SPARSE")
    end = data.index(b"\n", start)
    changed = data[:start] + line + data[end : end + 200]
    sparse.write_bytes(changed.ljust(len(data), b"\0"))
    assert refused(sparse, key, tmp_path) == "client.image.extents"
    assert refused(backed, key, tmp_path) == "client.image.backing"
    assert not tools


def test_features_that_nova_does_not_know(
    source: Path, key: Secret, tmp_path: Path
) -> None:
    plain = tmp_path / "extended"
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o",
         "extended_l2=on", source, plain)  # fmt: skip
    assert refused(plain, key, tmp_path) == "client.image.format"


def test_a_vmdk_with_a_parent(
    source: Path, key: Secret, tmp_path: Path
) -> None:
    parent = make(source, "vmdk-sparse", tmp_path)
    child = tmp_path / "child.vmdk"
    tool("qemu-img", "create", "-q", "-f", "vmdk", "-b", parent, "-F",
         "vmdk", child)  # fmt: skip
    assert refused(child, key, tmp_path).startswith("client.image.")


def test_luks_of_any_version(key: Secret, tmp_path: Path) -> None:
    for version in ("luks1", "luks2"):
        path = tmp_path / version
        path.write_bytes(bytes(1))
        os.truncate(path, 20 * MIB)
        subprocess.run(
            [
                *("cryptsetup", "luksFormat", "-q", "--type", version),
                *("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"),
                *("--key-file=-", path),
            ],
            input=b"x" * 64,
            check=True,
        )
        assert refused(path, key, tmp_path) == "client.image.encrypted"
        # nor by calling it raw
        with pytest.raises(InputError):
            encrypt.encrypt(str(path), str(tmp_path / "o"), key, form="raw")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("samples")
    plain = folder / "plain"
    plain.write_bytes(secrets.token_bytes(MIB))
    made = [make(plain, name, folder) for name in MADE]
    return [path.read_bytes() for path in made]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_change_is_taken_or_refused(
    samples: list[bytes], tmp_path: Path, data: st.DataObject
) -> None:
    """No other end than a Source or a refusal with an event id."""
    sample = bytearray(data.draw(st.sampled_from(samples)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(4096, len(sample) - 16)))
        change = data.draw(st.binary(min_size=1, max_size=16))
        sample[at : at + len(change)] = change
    path = tmp_path / "fuzzed"
    path.write_bytes(sample)
    fd = os.open(path, os.O_RDONLY)
    event = "client.image."
    try:
        found = inspect.inspect(fd)
        assert found.virtual_size % 512 == 0
        assert found.virtual_size > 0
    except InputError as exc:
        event = exc.event
    finally:
        os.close(fd)
    assert event.startswith("client.image.")


def test_adopted_luks_must_be_whole(
    source: Path, key: Secret, tmp_path: Path
) -> None:
    made = encrypt.encrypt(
        str(source), str(tmp_path / "out"), key, kind="luks"
    )
    again = encrypt.adopt(made.path, key)
    assert (again.sha256, again.virtual_size) == (made.sha256, SIZE)
    os.truncate(made.path, made.size - 1)
    with pytest.raises(InputError) as caught:
        encrypt.adopt(made.path, key)
    assert caught.value.event == "client.encrypt.luks"
    fd = os.open(source, os.O_RDONLY)
    with pytest.raises(InputError):
        disk.check(fd, "luks")
    os.close(fd)

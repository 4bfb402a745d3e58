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
"""Raw LUKS1 and OVA on the node, made by the client, opened by QEMU."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mh_core.errors import MHError
from mh_core.image import luks1, ova
from mh_core.manifest import Container, Manifest
from mh_core.secret import Secret
from mh_glance import encrypt
from mh_glance import ova as client_ova
from mh_nova.agent.overlay import secret_uuid
from mh_nova.hook.xml import GuestDisk
from tests.functional.mh_nova.agent.test_launch import memfd
from tests.functional.mh_nova.agent.world import KEY_ID, MIB, World
from tests.unit.mh_nova.hook.test_xml import disk as nova_disk

MARK = b"content-of-the-tenant" * 40


def refused(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(MHError) as caught:
        call(*args, **kwargs)
    return caught.value.event


def content(world: World) -> Path:
    path = world.folder / "plain.raw"
    path.write_bytes(MARK.ljust(8 * MIB, b"\0"))
    return path


def sign(world: World, made: encrypt.Ciphertext, **changes: Any) -> None:
    """Make it the tenant's image; the key server lists its manifest."""
    tenant = world.tenant
    tenant.file = Path(made.path)
    manifest = Manifest(
        image=tenant.image,
        key_id=KEY_ID,
        format=made.format,
        size=made.size,
        virtual_size=made.virtual_size,
        sha256=made.sha256,
        sha512=made.sha512,
        container=made.container,
    )
    tenant.manifest = replace(manifest, **changes).sign(tenant.signing)


def encrypted(world: World, kind: str) -> encrypt.Ciphertext:
    return encrypt.encrypt(
        str(content(world)),
        str(world.folder / f"made-{kind}"),
        Secret(world.tenant.dek),
        kind=kind,
    )


def wrapped(world: World, url: str = "") -> encrypt.Ciphertext:
    return client_ova.wrap(
        encrypted(world, "qcow2"),
        str(world.folder / "made.ova"),
        'an <"image"> & more',
        url or world.kms.url,
    )


def hooks_xml(world: World, base_format: str) -> str:
    """The domain with the disk as the hook writes it."""
    one = nova_disk()
    one.source_path = str(world.disk)
    one.boot_order = None
    made = GuestDisk.over(
        one,
        secret_uuid(world.instance, "disk", "overlay"),
        (str(world.base), secret_uuid(world.instance, "disk", "base")),
        base_format,
    ).to_xml()
    text = world.xml()
    begin, end = text.index("<disk "), text.index("</disk>") + 7
    return text[:begin] + made + text[end:]


def read_start(world: World, driver: str) -> bytes:
    """The first KiB that a guest would see, through both layers."""
    keys = world.secrets.defined[world.instance]
    layers = [secret_uuid(world.instance, "disk", x) for x in
              ("overlay", "base")]  # fmt: skip
    fds = [memfd(luks1.passphrase(keys[name])) for name in layers]
    below = (
        "backing.driver=luks,backing.key-secret=s1,"
        if driver == "luks"
        else "backing.driver=qcow2,backing.encrypt.format=luks,"
        "backing.encrypt.key-secret=s1,"
    )
    out = world.folder / "head"
    subprocess.run(
        [
            *("qemu-img", "dd", "bs=512", "count=2", f"of={out}", "-O"),
            *("raw", "--image-opts"),
            "if=driver=qcow2,encrypt.format=luks,encrypt.key-secret=s0,"
            f"file.driver=file,file.filename={world.disk},{below}"
            f"backing.file.driver=file,backing.file.filename={world.base}",
            *(
                word
                for i, fd in enumerate(fds)
                for word in ("--object", f"secret,id=s{i},file=/dev/fd/{fd}")
            ),
        ],
        pass_fds=fds,
        check=True,
        capture_output=True,
    )
    for fd in fds:
        os.close(fd)
    return out.read_bytes()


def launch(world: World, driver: str) -> None:
    (disk,) = world.make()
    assert disk["base_format"] == driver
    world.start(xml=hooks_xml(world, disk["base_format"]))
    assert read_start(world, driver)[: len(MARK)] == MARK
    world.launcher.started(world.instance, True)
    # and again, from what is on the host alone
    world.halt()
    world.boot()
    assert world.launcher.disks(world.instance) == [disk]
    world.start("start", hooks_xml(world, disk["base_format"]))
    world.launcher.started(world.instance, True)


def test_raw_luks(world: World) -> None:
    made = encrypted(world, "luks")
    assert (made.disk_format, made.container_format) == ("raw", "bare")
    sign(world, made)
    launch(world, "luks")
    info = subprocess.run(
        ["qemu-img", "info", "-U", world.disk],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "backing file format: luks" in info


def test_raw_luks_by_cryptsetup(world: World) -> None:
    """Not by us: header, key slot and payload are cryptsetup's."""
    path = world.folder / "foreign.luks"
    path.write_bytes(bytes(2 * MIB))
    os.truncate(path, 12 * MIB)
    passphrase = luks1.passphrase(world.tenant.dek)
    subprocess.run(
        [
            *("cryptsetup", "luksFormat", "--type", "luks1", "-q"),
            *("--pbkdf-force-iterations", "1000", "--key-size", "512"),
            *("--key-file=-", path),
        ],
        input=passphrase,
        check=True,
        capture_output=True,
    )
    fd = memfd(passphrase)
    subprocess.run(
        [
            *("qemu-img", "convert", "-n", "-f", "raw", "--object"),
            *(f"secret,id=s,file=/dev/fd/{fd}", "--target-image-opts"),
            content(world),
            f"driver=luks,key-secret=s,file.filename={path}",
        ],
        pass_fds=[fd],
        check=True,
        capture_output=True,
    )
    os.close(fd)
    made = encrypt.adopt(str(path), Secret(world.tenant.dek))
    assert made.format == "luks"
    sign(world, made)
    launch(world, "luks")
    other = Secret(os.urandom(32))
    assert refused(encrypt.adopt, str(path), other) == "client.encrypt.luks"


def test_raw_luks_attached_as_something_else(world: World) -> None:
    """Without the right format QEMU would show the guest ciphertext."""
    sign(world, encrypted(world, "luks"))
    world.make()
    assert refused(world.start) == "agent.admit.disk"


def test_a_manifest_of_another_format(world: World) -> None:
    sign(world, encrypted(world, "luks"), format="qcow2+luks")
    assert refused(world.make) == "agent.measure.header"


def test_a_file_within_the_encryption(world: World) -> None:
    inner = world.folder / "inner.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", inner, "8M"], check=True
    )
    made = encrypted(world, "luks")
    fd = memfd(luks1.passphrase(world.tenant.dek))
    subprocess.run(
        [
            *("qemu-img", "convert", "-n", "-f", "raw", "--object"),
            *(f"secret,id=s,file=/dev/fd/{fd}", "--target-image-opts"),
            inner,
            f"driver=luks,key-secret=s,file.filename={made.path}",
        ],
        pass_fds=[fd],
        check=True,
        capture_output=True,
    )
    os.close(fd)
    data = Path(made.path).read_bytes()
    made = replace(
        made,
        sha256=hashlib.sha256(data).hexdigest(),
        sha512=hashlib.sha512(data).hexdigest(),
    )
    sign(world, made)
    assert refused(world.make) == "agent.measure.content"
    assert not world.disk.exists()


def test_ova(world: World) -> None:
    made = wrapped(world)
    assert (made.disk_format, made.container_format) == ("qcow2", "ova")
    assert made.container is not None
    sign(world, made)
    launch(world, "qcow2")
    # the disk alone is what is kept
    assert world.base.stat().st_size == made.container.size
    names = {path.name for path in world.base.parent.iterdir()}
    assert names == {world.base.name}


def test_ova_warm(world: World) -> None:
    sign(world, wrapped(world))
    world.make()
    world.instance = world.new_instance()
    world.make()
    world.start(xml=hooks_xml(world, "qcow2"))


def test_two_launches_of_one_ova(world: World) -> None:
    """The second waits on the same download, and finds the base."""
    sign(world, wrapped(world))
    first, second = world.instance, world.new_instance()
    world.prepare()
    world.instance = second
    world.prepare()
    world.download()
    world.launcher.make(first, True)
    world.launcher.make(second, False)
    for instance in (first, second):
        world.instance = instance
        world.start(xml=hooks_xml(world, "qcow2"))


def test_what_a_crash_left_goes(world: World) -> None:
    sign(world, wrapped(world))
    left = world.part.with_name(world.part.name + ".disk")
    left.write_bytes(b"half a disk")
    world.prepare()
    assert not left.exists()
    left.write_bytes(b"half a disk")
    world.download()
    world.launcher.make(world.instance, True)
    assert not left.exists()


def test_ova_with_the_key_url_of_the_seed(world: World) -> None:
    sign(world, wrapped(world, world.kms.compat_url))
    world.make()


Lie = Callable[[World], None]


def _rewrapped(
    world: World,
    envelope: Callable[[bytes], bytes] = lambda text: text,
    hashes: Callable[[bytes], bytes] = lambda text: text,
    **container: Any,
) -> None:
    """An OVA that its owner signed, but that says something wrong."""
    disk = Path(encrypted(world, "qcow2").path).read_bytes()
    sha = hashlib.sha256(disk).hexdigest()
    good = client_ova.envelope(
        encrypt.Ciphertext("", len(disk), 8 * MIB, sha, "", ""),
        "x",
        world.kms.url,
    )
    text = envelope(good)
    digest = hashlib.sha256(text).hexdigest()
    listed = hashes(
        f"SHA256(image.ovf)= {digest}\nSHA256(disk.qcow2)= {sha}\n".encode()
    )
    data = b""
    for name, part in (("image.ovf", text), ("image.mf", listed)):
        data += ova.header(name, len(part)) + part + ova.padding(len(part))
    data += ova.header("disk.qcow2", len(disk))
    offset = len(data)
    data += disk + ova.padding(len(disk)) + ova.END
    path = world.folder / "lie.ova"
    path.write_bytes(data)
    made = encrypt.Ciphertext(
        str(path),
        len(data),
        8 * MIB,
        hashlib.sha256(data).hexdigest(),
        hashlib.sha512(data).hexdigest(),
        "",
        container=replace(
            Container(digest, "disk.qcow2", offset, len(disk), sha),
            **container,
        ),
    )
    sign(world, made)


@pytest.mark.parametrize(
    ("lie", "event"),
    [
        (
            lambda w: _rewrapped(
                w, lambda t: t.replace(b'encrypted="true"', b"")
            ),
            "agent.unpack.envelope",
        ),
        (
            lambda w: _rewrapped(
                w, lambda t: t.replace(b'"true"', b'"false"')
            ),
            "agent.unpack.envelope",
        ),
        (
            lambda w: _rewrapped(
                w,
                lambda t: t.replace(
                    b"</References>",
                    b'<File id="f2" href="plain.vmdk"/></References>',
                ),
            ),
            "agent.unpack.envelope",
        ),
        (
            lambda w: _rewrapped(
                w,
                lambda t: t.replace(KEY_ID.encode(), b"0" * 8 + b"-0000" * 3
                                    + b"-" + b"0" * 12),  # fmt: skip
            ),
            "agent.unpack.key",
        ),
        (
            lambda w: _rewrapped(
                w, lambda t: t.replace(b"disk.qcow2", b"other.qcow")
            ),
            "agent.unpack.envelope",
        ),
        (
            lambda w: _rewrapped(
                w, lambda t: b'<!DOCTYPE x [<!ENTITY e "x">]>' + t[39:]
            ),
            "agent.unpack.envelope",
        ),
        (
            lambda w: _rewrapped(w, envelope=lambda t: b"<x/>"),
            "agent.unpack.envelope",
        ),
        (
            lambda w: _rewrapped(w, hashes=lambda t: t.split(b"\n")[0]),
            "agent.unpack.hashes",
        ),
        (
            lambda w: _rewrapped(w, hashes=lambda t: b"nonsense"),
            "agent.unpack.files",
        ),
        (lambda w: _rewrapped(w, envelope=lambda t: t, offset=512),
         "agent.unpack.disk"),
        (lambda w: _rewrapped(w, size=512), "agent.unpack.disk"),
        (lambda w: _rewrapped(w, disk="other"), "agent.unpack.disk"),
        (lambda w: _rewrapped(w, sha256="00" * 32), "agent.unpack.hashes"),
    ],
)  # fmt: skip
def test_an_ova_that_lies(world: World, lie: Lie, event: str) -> None:
    lie(world)
    assert refused(world.make) == event
    assert not world.disk.exists()
    assert not list(world.base.parent.iterdir())


def test_an_ova_whose_bytes_changed(world: World) -> None:
    sign(world, wrapped(world))
    data = bytearray(world.tenant.data)
    data[-5000] ^= 1
    assert refused(world.make, bytes(data)) == "agent.unpack.digest"
    # the next download is a new one
    world.make()


def test_a_disk_where_an_ova_should_be(world: World) -> None:
    """The disk alone is the same disk: nothing else was signed about it."""
    made = wrapped(world)
    sign(world, made)
    assert made.container is not None
    start = made.container.offset
    data = world.tenant.data[start : start + made.container.size]
    world.make(data)


def test_an_ova_where_a_disk_should_be(world: World) -> None:
    sign(world, wrapped(world), container=None)
    assert refused(world.make) == "agent.measure.header"

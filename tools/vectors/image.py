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

"""Make tests/vectors/image/*.json again, with qemu-img and cryptsetup.

Each vector is what one of these tools wrote, or that with a few bytes
edited, and what the parsers must say to it: ``ok`` or the id of an event.
Values differ from run to run; verdicts do not.

Usage: python tools/vectors/image.py [directory]
"""

import base64
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from typing import Any

KEY = b"0123456789abcdef" * 4  # a passphrase for vectors only
HEAD = 4096  # bytes of each header that a vector keeps
BASE = "/var/lib/instances/_base/base"
SIZE = 64 << 20
QEMU_CRYPT = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
KEY_OBJECT = "secret,id=s,file=/dev/fd/{fd}"

Edit = Callable[[bytearray], None]


def run(*command: str) -> str:
    """Run a tool; ``{fd}`` in an argument becomes a descriptor of the key.

    qemu-img fails at random when its PBKDF2 calibration finds that no time
    has passed, so it has more than one chance.
    """
    for _ in range(20):
        fd = os.memfd_create("key")
        os.write(fd, KEY)
        os.lseek(fd, 0, os.SEEK_SET)
        done = subprocess.run(
            [word.replace("{fd}", str(fd)) for word in command],
            pass_fds=[fd],
            capture_output=True,
            text=True,
            check=False,
        )
        os.close(fd)
        if done.returncode == 0:
            return done.stdout
        if "accurate CPU usage" not in done.stderr:
            break
        time.sleep(0.2)
    raise SystemExit(f"{command[0]}: {done.stderr.strip()}")


def pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def put(offset: int, form: str, *values: Any) -> Edit:
    """An edit: write big-endian values at an offset."""

    def edit(head: bytearray) -> None:
        struct.pack_into(">" + form, head, offset, *values)

    return edit


class Maker:
    """Writes vectors into one directory."""

    def __init__(self, directory: pathlib.Path, work: str) -> None:
        self.directory = directory
        self.work = work
        self.tools = {
            "qemu-img": run("qemu-img", "--version").split("\n")[0],
            "cryptsetup": run("cryptsetup", "--version").split("\n")[0],
        }

    def make(self, name: str, *commands: tuple[str, ...]) -> dict[str, Any]:
        """Run the commands, of which the first makes the file ``name``."""
        path = f"{self.work}/{name}"
        for command in commands:
            run(*(word.replace("FILE", path) for word in command))
        with open(path, "rb") as image:
            head = image.read(HEAD)
            size = image.seek(0, os.SEEK_END)
            luks = b""
            pointer = None
            if head[:4] == b"QFI\xfb":
                pointer = head.find(struct.pack(">II", 0x0537BE77, 16))
            if pointer is not None and pointer > 0:
                image.seek(struct.unpack_from(">Q", head, pointer + 8)[0])
                luks = image.read(HEAD)
        return {
            "tool": self.tools[commands[0][0]],
            "commands": [" ".join(command) for command in commands],
            "path": path,
            "pointer": pointer,
            "file_size": size,
            "head": head,
            "luks": luks,
        }

    def vector(
        self,
        name: str,
        made: dict[str, Any],
        expect: str,
        edits: tuple[Edit, ...] = (),
        note: str = "as the tool wrote it",
        backing: tuple[str, str] | None = None,
        **facts: Any,
    ) -> None:
        """Write one vector: ``made`` with edits to its head."""
        head = bytearray(made["head"])
        for edit in edits:
            edit(head)
        document = {
            "title": name.replace("-", " "),
            "tool": made["tool"],
            "commands": made["commands"],
            "edit": note,
            "kind": "qcow2" if made["pointer"] is not None else "luks",
            "file_size": facts.pop("file_size", made["file_size"]),
            "head": pack(bytes(head)),
            "luks": pack(made["luks"]),
            "backing": backing,
            "expect": expect,
            "facts": facts,
        }
        target = self.directory / f"{name}.json"
        target.write_text(json.dumps(document, indent=1) + "\n")


def qemu(options: str, *more: str) -> tuple[str, ...]:
    return (
        *("qemu-img", "create", "-q", "-f", "qcow2", "--object", KEY_OBJECT),
        *("-o", options, *more, "FILE", str(SIZE)),
    )


def on_image(*command: str) -> tuple[str, ...]:
    options = (
        "driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,"
        "file.driver=file,file.filename=FILE"
    )
    words = [options if word == "OPTS" else word for word in command]
    return ("qemu-img", words[0], "--object", KEY_OBJECT, *words[1:])


def qcow2_good(maker: Maker) -> tuple[dict[str, Any], dict[str, Any]]:
    plain = maker.make("qcow2", qemu(QEMU_CRYPT))
    info = json.loads(run("qemu-img", "info", "--output=json", plain["path"]))
    crypt = info["format-specific"]["data"]["encrypt"]
    maker.vector(
        "qcow2-luks",
        plain,
        "ok",
        virtual_size=info["virtual-size"],
        luks_uuid=crypt["uuid"],
        luks_iterations=crypt["slots"][0]["iters"],
        payload_offset=crypt["payload-offset"],
    )
    over = maker.make(
        "backing", qemu(QEMU_CRYPT, "-u", "-b", BASE, "-F", "qcow2")
    )
    pair = (BASE, "qcow2")
    maker.vector("qcow2-backing", over, "ok", backing=pair, virtual_size=SIZE)
    deny = "core.image.qcow2.backing"
    other = "expected another pair"
    maker.vector("qcow2-backing-none-expected", over, deny, note=other)
    maker.vector(
        *("qcow2-backing-missing", plain, deny),
        note=other,
        backing=pair,
    )
    maker.vector(
        *("qcow2-backing-other-path", over, deny),
        note=other,
        backing=(BASE + "2", "qcow2"),
    )
    maker.vector(
        *("qcow2-backing-other-format", over, deny),
        note=other,
        backing=(BASE, "raw"),
    )
    return plain, over


def qcow2_tool_made(maker: Maker) -> None:
    """What qemu-img makes and the allow-list refuses."""
    event = "core.image.qcow2."
    cases: list[tuple[str, str, tuple[tuple[str, ...], ...]]] = [
        ("plain", "crypt-method", (qemu("compat=1.1"),)),
        ("version-2", "version", (qemu("compat=0.10"),)),
        ("data-file-plain", "data-file", (qemu("data_file=DATA"),)),
        ("data-file", "data-file", (qemu(f"data_file=DATA,{QEMU_CRYPT}"),)),
        (
            "data-file-raw",
            "data-file",
            (qemu(f"data_file=DATA,data_file_raw=on,{QEMU_CRYPT}"),),
        ),
        (
            "compression-type",
            "compression",
            (qemu(f"compression_type=zstd,{QEMU_CRYPT}"),),
        ),
        (
            "extended-l2",
            "features",
            (qemu(f"extended_l2=on,{QEMU_CRYPT}"),),
        ),
        (
            "lazy-refcounts",
            "features",
            (qemu(f"lazy_refcounts=on,{QEMU_CRYPT}"),),
        ),
        (
            "snapshot",
            "snapshots",
            (
                qemu(QEMU_CRYPT),
                on_image("snapshot", "-c", "one", "--image-opts", "OPTS"),
            ),
        ),
        (
            "bitmap",
            "features",
            (
                qemu(QEMU_CRYPT),
                on_image("bitmap", "--add", "--image-opts", "OPTS", "b0"),
            ),
        ),
        (
            "backing-json",
            "backing",
            (
                qemu(
                    *(QEMU_CRYPT, "-u", "-F", "raw", "-b"),
                    'json:{"driver":"raw","file.filename":"/etc/shadow"}',
                ),
            ),
        ),
        (
            "aes",
            "crypt-method",
            (qemu("encrypt.format=aes,encrypt.key-secret=s"),),
        ),
    ]
    for name, cause, commands in cases:
        words = tuple(
            tuple(w.replace("DATA", f"{maker.work}/{name}.data") for w in c)
            for c in commands
        )
        made = maker.make(name, *words)
        made["commands"] = [" ".join(command) for command in commands]
        maker.vector(f"qcow2-{name}", made, event + cause)
        if name == "bitmap":
            maker.vector(
                *("qcow2-bitmap-unclean", made, event + "extensions"),
                edits=(put(88, "Q", 0),),
                note="autoclear features set to 0",
            )


def qcow2_edited(
    maker: Maker, plain: dict[str, Any], over: dict[str, Any]
) -> None:
    """Bytes that no tool wrote."""
    event = "core.image.qcow2."
    at = plain["pointer"]
    size = plain["file_size"]
    body = plain["head"][at : at + 24]

    def doubled(head: bytearray) -> None:
        head[112:112] = body

    cases: list[tuple[str, str, Edit, str]] = [
        ("crypt-method-1", "extensions", put(32, "I", 1), "crypt_method 1"),
        ("crypt-method-3", "extensions", put(32, "I", 3), "crypt_method 3"),
        ("dirty", "features", put(72, "Q", 1), "dirty bit"),
        ("corrupt", "features", put(72, "Q", 2), "corrupt bit"),
        ("unknown-bit", "features", put(72, "Q", 1 << 63), "bit 63"),
        ("data-file-bit", "data-file", put(72, "Q", 4), "bit 2 alone"),
        ("compression-bit", "header", put(72, "Q", 8), "bit 3 alone"),
        ("compression-byte", "header", put(104, "B", 1), "type, no bit"),
        ("padding", "header", put(111, "B", 1), "header padding"),
        ("cluster-bits-8", "header", put(20, "I", 8), "cluster_bits 8"),
        ("cluster-bits-63", "header", put(20, "I", 63), "cluster_bits 63"),
        ("refcount-order", "header", put(96, "I", 7), "refcount_order 7"),
        ("header-length", "header", put(100, "I", 1 << 31), "length"),
        ("magic", "magic", put(0, "I", 0x514649FA), "magic"),
        ("size-zero", "size", put(24, "Q", 0), "virtual size 0"),
        ("size-huge", "size", put(24, "Q", 1 << 60), "virtual size 2^60"),
        ("l1-huge", "size", put(36, "I", 0xFFFFFFFF), "l1_size"),
        ("l1-past-end", "offset", put(40, "Q", 1 << 40), "l1 offset"),
        ("l1-over-header", "offset", put(40, "Q", 0), "l1 offset 0"),
        ("l1-unaligned", "offset", put(40, "Q", 8), "l1 offset 8"),
        (
            "l1-over-luks",
            "offset",
            put(40, "Q", struct.unpack_from(">Q", body, 8)[0]),
            "l1 offset",
        ),
        ("refcounts-past-end", "offset", put(48, "Q", size & ~65535), "rt"),
        ("snapshots-offset", "offset", put(64, "Q", 1 << 50), "offset"),
        ("luks-past-end", "offset", put(at + 8, "Q", 1 << 62), "pointer"),
        ("luks-unaligned", "offset", put(at + 8, "Q", 513), "pointer"),
        ("luks-empty", "offset", put(at + 16, "Q", 0), "pointer"),
        ("luks-long", "offset", put(at + 16, "Q", 1 << 63), "pointer"),
        ("duplicate-extension", "extensions", doubled, "pointer twice"),
        (
            "extension-long",
            "extensions",
            put(at + 4, "I", 0xFFFFFFFF),
            "extension length",
        ),
        (
            "unknown-extension",
            "extensions",
            put(at + 24, "I", 0x12345678),
            "type of the next extension",
        ),
        (
            "bitmaps-extension",
            "extensions",
            put(at + 24, "I", 0x23852875),
            "type of the next extension",
        ),
        (
            "data-file-extension",
            "data-file",
            put(at + 24, "I", 0x44415441),
            "type of the next extension",
        ),
    ]
    for name, cause, edit, note in cases:
        maker.vector(
            f"qcow2-{name}", plain, event + cause, (edit,), f"edited: {note}"
        )
    maker.vector(
        *("qcow2-short-file", plain, event + "offset"),
        note="the file is said to end after the header",
        file_size=65536,
    )

    def cut(head: bytearray) -> None:
        del head[103:]

    maker.vector(
        *("qcow2-truncated", plain, event + "truncated", (cut,)),
        note="cut after 103 bytes",
    )
    pair = (BASE, "qcow2")
    cases = [
        ("backing-long", "backing", put(16, "I", 1024), "name length"),
        ("backing-empty", "backing", put(16, "I", 0), "name length"),
        ("backing-far", "backing", put(8, "Q", 1 << 40), "name offset"),
        (
            "backing-early",
            "extensions",
            put(8, "QI", 120, 5),
            "name in the extension",
        ),
    ]
    for name, cause, edit, note in cases:
        maker.vector(
            *(f"qcow2-{name}", over, event + cause, (edit,)),
            note=f"edited: {note}",
            backing=pair,
        )


def cryptsetup(*options: str) -> tuple[str, ...]:
    return (
        *("cryptsetup", "luksFormat", "--batch-mode", *options),
        *("--key-file", "/dev/fd/{fd}", "FILE"),
    )


def luks(maker: Maker) -> None:
    event = "core.image.luks."
    quick = ("--pbkdf-force-iterations", "1000")
    one = ("--type", "luks1", *quick)
    xts = ("--cipher", "aes-xts-plain64", "--key-size", "512")
    cbc = ("--cipher", "aes-cbc-essiv:sha256", "--key-size", "256")
    cases: list[tuple[str, str, tuple[str, ...]]] = [
        ("xts", "ok", (*one, *xts)),
        ("cbc-essiv", "ok", (*one, *cbc)),
        ("aes-128", event + "cipher", (*one, *xts[:3], "256")),
        (
            "cbc-plain",
            event + "cipher",
            (*one, "--cipher", "aes-cbc-plain64", "--key-size", "256"),
        ),
        ("sha1", event + "hash", (*one, *xts, "--hash", "sha1")),
        ("sha512", event + "hash", (*one, *xts, "--hash", "sha512")),
        (
            "version-2",
            event + "version",
            ("--type", "luks2", "--pbkdf", "pbkdf2", *quick),
        ),
    ]
    for name, expect, options in cases:
        with open(f"{maker.work}/luks-{name}", "wb") as image:
            image.truncate(32 << 20)
        made = maker.make(f"luks-{name}", cryptsetup(*options))
        facts: dict[str, Any] = {}
        if expect == "ok":
            uuid = run("cryptsetup", "luksUUID", made["path"]).strip()
            facts = {"luks_uuid": uuid, "luks_iterations": 1000}
        maker.vector(f"luks-{name}", made, expect, **facts)
        if name == "xts":
            luks_edited(maker, made)
    for name, expect, extra in (
        ("qemu", "ok", ""),
        ("serpent", event + "cipher", ",cipher-alg=serpent-256"),
    ):
        made = maker.make(
            f"luks-{name}",
            (
                *("qemu-img", "create", "-q", "-f", "luks"),
                *("--object", KEY_OBJECT, "-o"),
                *(f"key-secret=s,iter-time=10{extra}", "FILE", str(SIZE)),
            ),
        )
        maker.vector(f"luks-{name}", made, expect)


def luks_edited(maker: Maker, made: dict[str, Any]) -> None:
    event = "core.image.luks."

    def cut(head: bytearray) -> None:
        del head[591:]

    cases: list[tuple[str, str, Edit, str]] = [
        ("truncated", "truncated", cut, "cut after 591 bytes"),
        ("magic", "magic", put(0, "I", 0), "magic"),
        ("version-0", "version", put(6, "H", 0), "version 0"),
        ("cipher-garbage", "cipher", put(12, "B", 1), "after the name"),
        ("mode-unterminated", "cipher", put(40, "32s", b"x" * 32), "mode"),
        ("key-bytes", "cipher", put(108, "I", 1 << 31), "key bytes"),
        ("payload-zero", "payload", put(104, "I", 0), "payload offset"),
        ("payload-far", "payload", put(104, "I", 1 << 31), "payload"),
        ("payload-early", "slots", put(104, "I", 8), "payload offset"),
        (
            "digest-iterations-huge",
            "iterations",
            put(164, "I", 0xFFFFFFFF),
            "digest iterations",
        ),
        (
            "digest-iterations-few",
            "iterations",
            put(164, "I", 1),
            "digest iterations",
        ),
        (
            "iterations-huge",
            "iterations",
            put(212, "I", 0xFFFFFFFF),
            "iterations of slot 0",
        ),
        (
            "iterations-few",
            "iterations",
            put(212, "I", 999),
            "iterations of slot 0",
        ),
        ("uuid-garbage", "uuid", put(168, "B", 0x7B), "uuid"),
        ("uuid-binary", "uuid", put(170, "B", 0xFF), "uuid"),
        ("uuid-empty", "uuid", put(168, "40s", b""), "uuid"),
        ("slot-state", "slots", put(208, "I", 1), "state of slot 0"),
        ("slots-none", "slots", put(208, "I", 0xDEAD), "slot 0 off"),
        ("slots-overlap", "slots", put(248, "I", 513), "offset of slot 0"),
        ("slots-same", "slots", put(248, "I", 512), "offset of slot 0"),
        ("slot-in-header", "slots", put(248, "I", 1), "offset of slot 0"),
        ("slot-far", "slots", put(248, "I", 1 << 31), "offset of slot 0"),
        ("slot-in-payload", "slots", put(248, "I", 4000), "offset"),
        ("stripes-1", "slots", put(252, "I", 1), "stripes of slot 0"),
        ("stripes-huge", "slots", put(252, "I", 1 << 31), "stripes"),
    ]
    for name, cause, edit, note in cases:
        maker.vector(
            f"luks-{name}", made, event + cause, (edit,), f"edited: {note}"
        )


def main() -> None:
    target = pathlib.Path(
        sys.argv[1] if len(sys.argv) > 1 else "tests/vectors/image"
    )
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.json"):
        old.unlink()
    with tempfile.TemporaryDirectory() as work:
        maker = Maker(target, work)
        plain, over = qcow2_good(maker)
        qcow2_tool_made(maker)
        qcow2_edited(maker, plain, over)
        luks(maker)
    print(f"{len(list(target.glob('*.json')))} vectors in {target}")


if __name__ == "__main__":
    main()

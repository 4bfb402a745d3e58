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

"""Vectors of qcow2 headers."""

import json
import struct
from typing import Any

from image_parts.maker import KEY_OBJECT, SIZE, Edit, Maker, put, run

BASE = "/var/lib/instances/_base/base"
QEMU_CRYPT = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"


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


def good(maker: Maker) -> tuple[dict[str, Any], dict[str, Any]]:
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


def tool_made(maker: Maker) -> None:
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


def edited(maker: Maker, plain: dict[str, Any], over: dict[str, Any]) -> None:
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

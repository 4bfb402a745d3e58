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

"""Vectors of LUKS1 headers."""

from typing import Any

from image_parts.maker import KEY_OBJECT, SIZE, Edit, Maker, put, run


def cryptsetup(*options: str) -> tuple[str, ...]:
    return (
        *("cryptsetup", "luksFormat", "--batch-mode", *options),
        *("--key-file", "/dev/fd/{fd}", "FILE"),
    )


def tool_made(maker: Maker) -> None:
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
            edited(maker, made)
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


def edited(maker: Maker, made: dict[str, Any]) -> None:
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

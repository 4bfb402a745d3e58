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
"""qemu-img, run by the agent over an encrypted chain.

Files and keys reach the tool as descriptors: no name is looked up again
after its check, and no key is in a file, an argument or the environment.
"""

import fcntl
import os
import resource
import subprocess
import threading
from dataclasses import dataclass

from mh_core.errors import Denied, Unavailable
from mh_core.image import luks1
from mh_core.secret import Secret

EVENT = "agent.tool"
_POLL = 0.1
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


@dataclass(frozen=True)
class Layer:
    """One encrypted file.

    :param fd: open for what is done to it; stays the caller's.
    :param key: 32 bytes.
    :param driver: ``qcow2`` with LUKS inside, or ``luks``.
    """

    fd: int
    key: Secret
    driver: str = "qcow2"


def memfd(data: bytes) -> int:
    """A sealed file in memory, for a tool to read once."""
    fd = os.memfd_create("mh", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(
        fd,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK,
    )
    return fd


def _options(prefix: str, layer: Layer, secret: str) -> str:
    if layer.driver == "luks":
        how = f"{prefix}driver=luks,{prefix}key-secret={secret}"
    else:
        # without encrypt.format QEMU opens a plain qcow2 without a word
        how = (
            f"{prefix}driver=qcow2,{prefix}encrypt.format=luks,"
            f"{prefix}encrypt.key-secret={secret}"
        )
    return (
        f"{how},{prefix}file.driver=file,"
        f"{prefix}file.filename=/dev/fd/{layer.fd}"
    )


def convert(
    top: Layer,
    base: Layer | None,
    target: Layer,
    cancelled: threading.Event,
) -> None:
    """Fill an empty encrypted image with what a chain reads as.

    Holes stay holes; ciphertext is all that is written.

    :param base: below ``top``; None where that has no backing file, which
        the caller has checked.
    :param target: just written, without a backing file.
    :raises Denied: ``agent.tool.cancelled``, ``agent.tool.convert``.
    :raises Unavailable: ``agent.tool.missing``.
    """
    layers = {"top": top, "out": target}
    source = _options("", top, "top")
    if base is not None:
        layers["base"] = base
        source += "," + _options("backing.", base, "base")
    secrets = {
        name: memfd(luks1.passphrase(layer.key.reveal()))
        for name, layer in layers.items()
    }
    argv = ["qemu-img", "convert", "-n", "--target-is-zero"]
    for name, fd in secrets.items():
        argv += ["--object", f"secret,id={name},file=/dev/fd/{fd}"]
    argv += ["--image-opts", "--target-image-opts", source]
    argv += [_options("", target, "out")]
    descriptors = [layer.fd for layer in layers.values()]
    try:
        _run(argv, (*descriptors, *secrets.values()), cancelled)
    finally:
        for fd in secrets.values():
            os.close(fd)


def _run(
    argv: list[str], descriptors: tuple[int, ...], cancelled: threading.Event
) -> None:
    try:
        child = subprocess.Popen(
            argv,
            pass_fds=descriptors,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except OSError as exc:
        raise Unavailable(
            EVENT + ".missing", "qemu-img cannot be run (qemu-utils)"
        ) from exc
    with child:
        try:
            # a core dump of the tool would hold the keys
            resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
        except ProcessLookupError:
            pass
        while child.poll() is None:
            if cancelled.wait(_POLL):
                child.kill()
                child.wait()
                raise Denied(EVENT + ".cancelled", "the copy was given up")
        words = child.stderr.read(2048) if child.stderr else b""
    if child.returncode:
        text = words.decode("ascii", "replace").strip().split("\n")[-1]
        raise Denied(EVENT + ".convert", f"qemu-img failed: {text[:200]}")

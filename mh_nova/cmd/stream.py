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
"""``mh-agent stream``: encrypted image on stdin, opened one on stdout.

Hands both descriptors to the agent, and waits. It never sees a key, nor the
image. The exit status is 0 only where the whole image was measured before
its first byte, and written to its last; whoever reads the output must look
at it (``set -o pipefail``), and throw away what came where it is not 0.
"""

import argparse
import json
import socket
import struct
import sys

from mh_core.encoding import MAX_JSON, parse_json
from mh_core.errors import InputError

DEFAULT_SOCKET = "/run/mystery-hill/stream.sock"
_LENGTH = struct.Struct(">I")


def ask(path: str, request: bytes, source: int, target: int) -> object:
    """One request; the answer as it came.

    :raises OSError: the agent does not answer.
    :raises InputError: not an answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.connect(path)
        socket.send_fds(peer, [_LENGTH.pack(len(request))], [source, target])
        peer.sendall(request)
        with peer.makefile("rb") as stream:
            head = stream.read(_LENGTH.size)
            if len(head) != _LENGTH.size:
                raise InputError("agent.stream.answer", "the agent hung up")
            (length,) = _LENGTH.unpack(head)
            if length > MAX_JSON:
                raise InputError("agent.stream.answer", "too large")
            return parse_json(stream.read(length))


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 1 refused or broken, 2 wrong use."""
    parser = argparse.ArgumentParser(
        prog="mh-agent stream",
        description="Read an encrypted image from standard input, write the "
        "opened one to standard output once all of it is measured.",
    )
    parser.add_argument(
        "--request",
        required=True,
        metavar="<file>",
        help="JSON object: instance, image, project, user, key_url, key_id, "
        "manifest; ticket where the key's policy wants one",
    )
    parser.add_argument(
        "--socket", default=DEFAULT_SOCKET, help="default: %(default)s"
    )
    args = parser.parse_args(argv)
    if sys.stdout.isatty():
        parser.error("the opened image does not go to a terminal")
    try:
        with open(args.request, "rb") as file:
            request = file.read(MAX_JSON)
        json.loads(request)
        answer = ask(
            args.socket, request, sys.stdin.fileno(), sys.stdout.fileno()
        )
        if not isinstance(answer, dict):
            raise InputError("agent.stream.answer", "not an answer")
    except (OSError, ValueError) as exc:
        print(f"mh-agent stream: {exc}", file=sys.stderr)
        return 1
    except InputError as exc:
        print(f"mh-agent stream: {exc}", file=sys.stderr)
        return 1
    if answer.get("ok") is not True:
        error = answer.get("error")
        shown = error if isinstance(error, dict) else {}
        print(
            f"mh-agent stream: refused: {shown.get('message')} "
            f"[{shown.get('event')}]",
            file=sys.stderr,
        )
        return 1
    print(
        f"mh-agent stream: {answer.get('bytes')} bytes "
        f"[{answer.get('event')}] {answer.get('detail')}",
        file=sys.stderr,
    )
    return 0

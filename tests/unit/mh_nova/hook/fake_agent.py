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

"""An agent that says what a test wants, truthful or not."""

import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from mh_nova.hook.agent_client import AgentClient
from tests.unit.mh_nova.hook.test_properties import IMAGE, KEY

Answer = dict[str, Any] | bytes | Callable[[dict[str, Any]], Any] | None

INSTANCE = "0f6a4f6e-2b1e-4f0e-9d0a-3c5d6a7b8c90"
OVERLAY = "11111111-1111-5111-8111-111111111111"
BASE = "22222222-2222-5222-8222-222222222222"
TRUSTED = {
    "ok": True,
    "trusted": True,
    "findings": [],
    "enrolled": True,
    "version": "1",
}
DESCRIBED = {
    "image": IMAGE,
    "key_url": "https://kms.example/v1/keys/" + KEY,
    "key_id": KEY,
    "manifest": "e30.e30.AAAA",
    "compat": False,
    "disks": [{"name": "disk", "size": 1048576, "base": True}],
}
DISKS = {
    "ok": True,
    "disks": [
        {
            "name": "disk",
            "overlay_secret": OVERLAY,
            "base_secret": BASE,
            "base": True,
        }
    ],
}


def known(
    ours: bool, why: str = "", image: str = "", key: str = "", url: str = ""
) -> dict[str, Any]:
    """An answer to ``ours``."""
    return {
        "ok": True,
        "ours": ours,
        "why": why,
        "image": image,
        "key_id": key,
        "key_url": url,
    }


def no(event: str, message: str = "because") -> dict[str, Any]:
    return {"ok": False, "error": {"event": event, "message": message}}


class FakeAgent:
    """Serves a unix socket; ``answers`` by verb, ``seen`` in order.

    An answer is a document, raw bytes to send as they are, None to hang up,
    or a function of the request that returns one of these.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.seen: list[dict[str, Any]] = []
        self.answers: dict[str, Answer] = {
            "status": TRUSTED,
            "prepare": {"ok": True},
            "ask-start": {"ok": True},
            "ask-launch": {"ok": True},
            "make": DISKS,
            "disks": DISKS,
            "start": {"ok": True, "event": "agent.admit.ok", "detail": ""},
            "started": {"ok": True},
            "ours": known(False, ""),
            "suspend": {"ok": True},
            "cache": {"ok": True},
            "lease": {"ok": True, "lease": "", "ends_in": 0, "stopped": ""},
            "forget": {"ok": True},
            "migrate-offer": {"ok": True},
            "migrate-left": {"ok": True},
            "unfinished": {"ok": True, "incoming": [], "offered": []},
            "snapshot-check": no("agent.snapshot.policy"),
            "snapshot": no("agent.snapshot.policy"),
            "end": {"ok": True},
            "sweep": {"ok": True},
            "describe": {"ok": True, **DESCRIBED},
            "resize": {"ok": True},
            "arrived": {"ok": True},
            "attach": {
                "ok": True,
                "event": "agent.attach.granted",
                "detail": "",
            },
            "attached": {"ok": True},
            "drive": {"ok": True},
            "prepare-rescue": {"ok": True},
            "make-rescue": {"ok": True, "disks": []},
            "allow-plain-rescue": {"ok": True},
            "end-rescue": {"ok": True},
        }
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(path)
        self._socket.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def client(self, timeout: float = 5, launch: float = 5) -> AgentClient:
        return AgentClient(self.path, timeout, launch)

    def verbs(self) -> list[str]:
        return [request["verb"] for request in self.seen]

    def asked(self, verb: str) -> list[dict[str, Any]]:
        return [one for one in self.seen if one["verb"] == verb]

    def close(self) -> None:
        # shutdown wakes accept()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()
        self._thread.join(5)
        if os.path.exists(self.path):
            os.unlink(self.path)

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(
                target=self._one, args=(peer,), daemon=True
            ).start()

    def _one(self, peer: socket.socket) -> None:
        with peer, peer.makefile("rb") as stream:
            head = stream.read(4)
            if len(head) < 4:
                return
            (length,) = struct.unpack(">I", head)
            request = json.loads(stream.read(length))
            self.seen.append(request)
            answer = self.answers[request["verb"]]
            if callable(answer):
                answer = answer(request)
            if answer is None:
                return
            if isinstance(answer, dict):
                data = json.dumps(answer).encode()
                answer = struct.pack(">I", len(data)) + data
            try:
                peer.sendall(answer)
            except OSError:
                pass

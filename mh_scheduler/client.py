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
"""The one question to the attestation server: ``POST /v1/hosts/trust``."""

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import requests

from mh_core.encoding import MAX_JSON, canonical_json, parse_json
from mh_core.errors import InputError, Unavailable, VerificationError
from mh_core.fields import Fields
from mh_core.secret import Secret
from mh_scheduler.cache import Reply

EVENT = "scheduler.client"
LEVELS = ("trusted", "boot-only", "untrusted", "unknown")
#: Longest life of a state that is read, seconds.
MAX_LIFE = 86400
_CHUNK = 4096


class TrustClient:
    """Asks, over TLS, following nothing and reading no more than it must.

    :param url: https origin of the attestation server.
    :param ca_file: CA of its certificate, or None for the system's list.
    """

    def __init__(
        self, url: str | None, ca_file: str | None, token_file: str | None
    ) -> None:
        self._url = url
        self._token_file = token_file
        self._ca_file = ca_file
        self._renew()

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._session = requests.Session()
        # No proxy and no netrc of the environment's.
        self._session.trust_env = False
        self._session.verify = self._ca_file or True

    def ask(self, hosts: Sequence[str], timeout: float) -> dict[str, Reply]:
        """States of the hosts; one not answered for is left out.

        :raises Unavailable: ``….configuration``, ``.silent``, ``.status``.
        :raises VerificationError: ``….reply``: not such an answer.
        """
        if not self._url or not self._url.startswith("https://"):
            raise Unavailable(
                EVENT + ".configuration",
                "[mh_scheduler] attestation_url is not an https URL",
            )
        status, data = self._within(
            self._url.rstrip("/") + "/v1/hosts/trust",
            canonical_json({"hosts": list(hosts)}),
            self._token(),
            timeout,
        )
        if status != 200:
            raise Unavailable(
                EVENT + ".status", f"the attestation server answered {status}"
            )
        try:
            return _parse(data, frozenset(hosts))
        except InputError as exc:
            raise VerificationError(EVENT + ".reply", exc.message) from exc

    def _token(self) -> Secret:
        try:
            if not self._token_file:
                raise OSError
            return Secret(Path(self._token_file).read_bytes().strip())
        except OSError as exc:
            raise Unavailable(
                EVENT + ".configuration",
                "[mh_scheduler] token_file cannot be read",
            ) from exc

    def _within(
        self, url: str, body: bytes, token: Secret, timeout: float
    ) -> tuple[int, bytes]:
        """As :meth:`_post`, and over in time whatever the server does: each
        byte it sends, of a header say, begins the timeout anew."""
        found: queue.SimpleQueue[tuple[int, bytes] | Unavailable]
        found = queue.SimpleQueue()

        def post() -> None:
            try:
                found.put(self._post(url, body, token, timeout))
            except Unavailable as exc:
                found.put(exc)

        threading.Thread(target=post, name="mh-trust", daemon=True).start()
        try:
            answer = found.get(timeout=timeout)
        except queue.Empty:
            # that connection, and its lock, are the thread's
            self._renew()
            raise Unavailable(
                EVENT + ".silent", "the attestation server is too slow"
            ) from None
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    def _post(
        self, url: str, body: bytes, token: Secret, timeout: float
    ) -> tuple[int, bytes]:
        deadline = time.monotonic() + timeout
        lock, session = self._lock, self._session
        try:
            with (
                lock,
                session.post(
                    url,
                    data=body,
                    headers={
                        "Content-Type": "application/json",
                        "Authorization": "Bearer " + token.reveal().decode(),
                    },
                    timeout=timeout,
                    allow_redirects=False,
                    stream=True,
                ) as answer,
            ):
                data = b""
                for chunk in answer.iter_content(_CHUNK):
                    data += chunk
                    if len(data) > MAX_JSON or time.monotonic() > deadline:
                        raise Unavailable(
                            EVENT + ".silent", "the answer has no end"
                        )
                return int(answer.status_code), data
        except (requests.RequestException, UnicodeError, OSError) as exc:
            raise Unavailable(
                EVENT + ".silent", "the attestation server does not answer"
            ) from exc


def _parse(data: bytes, asked: frozenset[str]) -> dict[str, Reply]:
    event = EVENT + ".reply"
    fields = Fields(parse_json(data), event)
    found: dict[str, Reply] = {}
    for name, value in fields.object("hosts").items():
        one = Fields(value, event)
        reply = Reply(
            level=one.choice("level", LEVELS),
            event=one.text("event", maximum=128),
            expires_in=one.integer("expires_in", 0, MAX_LIFE),
        )
        one.object("tags")
        one.end()
        if name in asked:
            found[name] = reply
    fields.end()
    return found

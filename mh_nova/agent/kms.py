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
"""Client of the tenant's key server: a request goes in, a JWE comes out.

What comes back is believed only as far as the JWE opens to this host's bind
key with the digest of *our* request (:mod:`mh_nova.agent.release`); this
module bounds what a lying server can do before that.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from mh_core.encoding import b64u, canonical_json, parse_json
from mh_core.errors import (
    Denied,
    InputError,
    MHError,
    Unavailable,
)
from mh_core.fields import Fields
from mh_core.request import KeyRequest
from mh_core.snapshot import SnapshotClaims
from mh_nova.agent.http import Answer, Origin, Server, resolve, split_url
from mh_nova.agent.interfaces import Prover

EVENT = "agent.kms"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_NATIVE = re.compile(rf"/v1/keys/({_UUID})")
_COMPAT = re.compile(rf"/data-encryption-key/request/({_UUID})")
_EVENT_ID = re.compile(r"[a-z][a-z0-9.\-]{0,95}")
_JWE = re.compile(r"[A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]*){4}")


@dataclass(frozen=True)
class KeyUrl:
    """
    :param compat: the seed's form of the path.
    """

    origin: Origin
    path: str
    key_id: str
    compat: bool

    @classmethod
    def parse(cls, url: str) -> "KeyUrl":
        """:raises Denied: ``agent.kms.key-url``."""
        origin, path = split_url(url, EVENT + ".key-url")
        for pattern, compat in ((_NATIVE, False), (_COMPAT, True)):
            if match := pattern.fullmatch(path):
                return cls(origin, path, match[1], compat)
        raise Denied(EVENT + ".key-url", "not the URL of a key")


class PendingRequests:
    """Requests made in the seed's form that wait for the key server.

    The attestation server asks for one by its key URL; one at a time for
    each key, so that the answer is that of the launch that waits.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[tuple[str, str], threading.Lock] = {}
        self._waiting: dict[tuple[str, str], KeyRequest] = {}

    @staticmethod
    def _name(url: KeyUrl) -> tuple[str, str]:
        return str(url.origin), url.key_id

    def find(self, key_url: str) -> KeyRequest | None:
        """The request that waits for this key URL, in either form."""
        try:
            name = self._name(KeyUrl.parse(key_url))
        except MHError:
            return None
        with self._lock:
            return self._waiting.get(name)

    @contextmanager
    def waiting(self, url: KeyUrl, request: KeyRequest) -> Iterator[None]:
        name = self._name(url)
        with self._lock:
            turn = self._turns.setdefault(name, threading.Lock())
        with turn:
            with self._lock:
                self._waiting[name] = request
            try:
                yield
            finally:
                with self._lock:
                    del self._waiting[name]


class KmsClient:
    """
    :param conf: ``[agent]`` options, see ``conf.py``.
    :param pending: shared with the listener.
    """

    def __init__(
        self, conf: Any, prover: Prover, pending: PendingRequests
    ) -> None:
        self._conf = conf.agent
        self._prover = prover
        self._pending = pending
        # Nonces live for a minute: none is fetched while another launch of
        # the same key server waits for the TPM.  One turn per origin, so
        # that a slow server delays nobody else's launches.
        self._turns: dict[str, threading.Lock] = {}

    def check_url(self, url: str, key_id: str, compat: bool) -> KeyUrl:
        """May this key URL be contacted?

        :raises Denied: ``agent.kms.key-url``, ``agent.kms.origin``.
        """
        parsed = KeyUrl.parse(url)
        if parsed.key_id != key_id:
            raise Denied(EVENT + ".key-url", "the key URL is of another key")
        allowed = {
            str(split_url(entry, EVENT + ".origin")[0])
            for entry in self._conf.kms_origins
        }
        if str(parsed.origin) not in allowed:
            raise Denied(
                EVENT + ".origin",
                f"{parsed.origin} is not on this host's list of key servers",
            )
        seed = compat or parsed.compat
        if parsed.origin.scheme != "https" and not (
            seed and self._conf.kms_compat_http
        ):
            raise Denied(EVENT + ".origin", "key servers are asked by https")
        return KeyUrl(parsed.origin, parsed.path, parsed.key_id, seed)

    def fetch(self, url: KeyUrl, request: KeyRequest) -> str:
        """Ask for the keys of one request; returns the JWE, unopened.

        :param url: from :meth:`check_url`.
        :raises Denied: ``agent.kms.refused|address|redirect|answer``.
        :raises Unavailable: ``agent.kms.unavailable``.
        :raises MHError: of the prover.
        """
        server = self._server(url)
        try:
            if url.compat:
                return self._fetch_compat(server, url, request)
            return self._fetch_native(server, url, request)
        finally:
            server.close()

    def _server(self, url: KeyUrl) -> Server:
        return Server(
            url.origin,
            resolve(url.origin, EVENT + ".address", loopback=True),
            self._conf.kms_ca_file,
            self._conf.timeout,
            EVENT,
        )

    def upload(
        self, url: KeyUrl, claims: SnapshotClaims, manifest: str, jwe: str
    ) -> None:
        """Bring the new key of a snapshot to the key server of its source.

        :param url: of the source's key, from :meth:`check_url`.
        :raises MHError: as :meth:`fetch`.
        """
        path = f"/v1/keys/{url.key_id}"
        server = self._server(url)
        try:
            with self._turns.setdefault(str(url.origin), threading.Lock()):
                nonce = self._challenge(server, path)
                evidence = self._prover.snapshot_evidence(
                    nonce, claims.digest()
                )
            body = {
                "nonce": b64u(nonce),
                "claims": claims.to_dict(),
                "manifest": manifest,
                "jwe": jwe,
                "evidence": evidence.to_dict(),
            }
            fields = _answer(
                server.post(
                    path + "/snapshots",
                    canonical_json(body),
                    "application/json",
                ),
                201,
            )
        finally:
            server.close()
        try:
            key_id = fields.uuid("key_id")
            fields.end()
        except InputError as exc:
            raise Denied(EVENT + ".answer", exc.message) from exc
        if key_id != claims.key_id:
            raise Denied(EVENT + ".answer", "another key was registered")

    @staticmethod
    def _challenge(server: Server, path: str) -> bytes:
        return _nonce(
            _answer(
                server.post(path + "/challenge", b"{}", "application/json")
            )
        )

    def _fetch_native(
        self, server: Server, url: KeyUrl, request: KeyRequest
    ) -> str:
        fields, _nonce = self._prove(
            server, url, "/release", request.to_dict(), request.digest()
        )
        return _jwe(_only(fields, "jwe"))

    def ask_lease(
        self, url: KeyUrl, request: dict[str, Any], digest: bytes
    ) -> tuple[str, bytes]:
        """Ask about a lease: the answer, unverified, and the nonce.

        :param url: from :meth:`check_url`.
        :param request: and its digest, of ``mh_core.lease``.
        :raises MHError: as :meth:`fetch`.
        """
        server = self._server(url)
        try:
            fields, nonce = self._prove(
                server,
                replace(url, path=f"/v1/keys/{url.key_id}"),
                "/lease",
                request,
                digest,
            )
            return _only(fields, "lease"), nonce
        finally:
            server.close()

    def _prove(
        self,
        server: Server,
        url: KeyUrl,
        what: str,
        request: dict[str, Any],
        digest: bytes,
    ) -> tuple[Fields, bytes]:
        """A challenge, and the request with this host's evidence over it."""
        with self._turns.setdefault(str(url.origin), threading.Lock()):
            nonce = self._challenge(server, url.path)
            evidence = self._prover.release_evidence(nonce, digest)
        body = {
            "nonce": b64u(nonce),
            "request": request,
            "evidence": evidence.to_dict(),
        }
        fields = _answer(
            server.post(
                url.path + what, canonical_json(body), "application/json"
            )
        )
        return fields, nonce

    def _fetch_compat(
        self, server: Server, url: KeyUrl, request: KeyRequest
    ) -> str:
        with self._pending.waiting(url, request):
            answer = server.post(
                url.path,
                self._prover.ak_pem().encode(),
                "application/x-pem-file",
            )
        if answer.status != 200:
            _refuse(answer)
        try:
            return _jwe(answer.body.decode("ascii").strip())
        except UnicodeDecodeError as exc:
            raise Denied(EVENT + ".answer", "not a wrapped key") from exc


def _nonce(fields: Fields) -> bytes:
    try:
        nonce = fields.b64u("nonce", 32)
        fields.integer("expires_in", 1, 3600)
        fields.end()
    except InputError as exc:
        raise Denied(EVENT + ".answer", exc.message) from exc
    return nonce


def _only(fields: Fields, name: str) -> str:
    """The one member of an answer."""
    try:
        text = fields.text(name, maximum=128 * 1024)
        fields.end()
    except InputError as exc:
        raise Denied(EVENT + ".answer", exc.message) from exc
    return text


def _jwe(text: str) -> str:
    if len(text) > 128 * 1024 or not _JWE.fullmatch(text):
        raise Denied(EVENT + ".answer", "not a wrapped key")
    return text


def _answer(answer: Answer, status: int = 200) -> Fields:
    """The members of a success; whatever else it is becomes an error."""
    if answer.status != status:
        _refuse(answer)
    try:
        return Fields(parse_json(answer.body), EVENT + ".answer")
    except InputError as exc:
        raise Denied(EVENT + ".answer", exc.message) from exc


def _refuse(answer: Answer) -> NoReturn:
    """Always raises; shows the server's own event id, and not much else."""
    try:
        outer = Fields(parse_json(answer.body, 65536), EVENT + ".answer")
        error = Fields(outer.object("error"), EVENT + ".answer")
        event = error.text("event", maximum=96)
        message = error.text("message", maximum=1024, default="")
    except InputError:
        event = message = ""
    if not _EVENT_ID.fullmatch(event):
        raise Unavailable(
            EVENT + ".unavailable",
            f"the key server answers with status {answer.status}",
        )
    text = f"the key server refused: {event}"
    shown = "".join(c for c in message if c.isprintable())[:120]
    if shown:
        text += f" ({shown})"
    kind = Unavailable if answer.status >= 500 else Denied
    raise kind(EVENT + ".refused", text)

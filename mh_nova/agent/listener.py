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
"""The trust agent's listener: what the attestation server may ask a host.

HTTPS with a client certificate that must chain to the configured CA *and*
be the one certificate pinned in the agent's configuration.  The table of
routes is :data:`ROUTES`.  Nothing here signs bytes of the caller's choice:
it gives a nonce, the prover makes the rest.
"""

import hashlib
import hmac
import json
import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mh_core.encoding import b64u, parse_json
from mh_core.errors import (
    Denied,
    InputError,
    MHError,
    NotFound,
    Unavailable,
    VerificationError,
)
from mh_core.fields import Fields
from mh_core.request import KeyRequest
from mh_nova.agent.migration_tls import MigrationTls
from mh_nova.agent.prover import Prover

LOG = logging.getLogger(__name__)
EVENT = "agent.listener"
_MAX_BODY = 64 * 1024
#: Bytes of a refused body that are read and thrown away: a connection closed
#: over unread bytes is reset, and the caller never sees the answer.
_MAX_DRAIN = 1024 * 1024
#: Requests served at the same time; the TPM is serial anyway.
_AT_ONCE = 8


@dataclass(frozen=True)
class ListenerOptions:
    """
    :param host: the cloud's name of this host; ``host_id`` its uuid.
    :param address: where to listen.
    :param certificate_file: PEM; so ``key_file`` and ``ca_file``, the CA
        that issued the attestation server's client certificate.
    :param client_sha256: SHA-256 (hex) of that certificate's DER form.
    :param timeout: seconds a caller may take for one request.
    """

    host: str
    host_id: str
    address: tuple[str, int]
    certificate_file: str
    key_file: str
    ca_file: str
    client_sha256: str
    timeout: float = 10.0


@dataclass(frozen=True)
class _Context:
    options: ListenerOptions
    prover: Prover
    pending: Callable[[str], KeyRequest | None]
    migration: MigrationTls | None


def _identity(context: _Context, _body: Fields) -> dict[str, Any]:
    identity = context.prover.identity()
    return {
        "host": context.options.host,
        "host_id": context.options.host_id,
        "ek_certificate": b64u(identity.ek_certificate),
        "ek_public": b64u(identity.ek_public),
        "ak_public": b64u(identity.ak_public),
    }


def _activate(context: _Context, body: Fields) -> dict[str, Any]:
    credential = body.b64u("credential", maximum=1024)
    secret = body.b64u("secret", maximum=1024)
    body.end()
    return {"credential": b64u(context.prover.activate(credential, secret))}


def _certificate(context: _Context, body: Fields) -> dict[str, Any]:
    pem = body.text("ak_certificate", maximum=8192)
    body.end()
    context.prover.set_ak_certificate(pem)
    LOG.info("%s.enrolled: AK certificate received", EVENT)
    return {}


def _host_quote(context: _Context, body: Fields) -> dict[str, Any]:
    nonce = body.b64u("nonce", 32)
    body.end()
    return {"evidence": context.prover.host_evidence(nonce).to_dict()}


def _pending_release(context: _Context, body: Fields) -> dict[str, Any]:
    nonce = body.b64u("nonce", 32)
    key_url = body.text("key_url", maximum=2048)
    body.end()
    request = context.pending(key_url)
    if request is None:
        raise NotFound(
            "agent.compat.nothing-pending",
            "no launch on this host waits for that key URL",
        )
    evidence = context.prover.release_evidence(nonce, request.digest())
    return {"request": request.to_dict(), "evidence": evidence.to_dict()}


def _migration_quote(context: _Context, body: Fields) -> dict[str, Any]:
    nonce = body.b64u("nonce", 32)
    body.end()
    if context.migration is None:
        raise NotFound("agent.migrate.no-key", "no migration key here")
    jwk, evidence = context.migration.quote(nonce)
    return {"jwk": jwk, "evidence": evidence.to_dict()}


ROUTES: dict[tuple[str, str], Callable[[_Context, Fields], dict[str, Any]]] = {
    ("GET", "/v1/identity"): _identity,
    ("POST", "/v1/activate"): _activate,
    ("PUT", "/v1/certificate"): _certificate,
    ("POST", "/v1/host-quote"): _host_quote,
    ("POST", "/v1/pending-release"): _pending_release,
    ("POST", "/v1/migration-quote"): _migration_quote,
}


def _status(error: MHError) -> int:
    for kind, status in (
        (InputError, 400),
        (VerificationError, 403),
        (Denied, 403),
        (NotFound, 404),
        (Unavailable, 503),
    ):
        if isinstance(error, kind):
            return status
    return 500


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "mh-agent"
    sys_version = ""
    context: _Context
    slots: threading.BoundedSemaphore
    #: The request's body was read.
    taken = False

    def setup(self) -> None:
        self.request.settimeout(self.context.options.timeout)
        self.request.do_handshake()
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:
        LOG.debug("%s: %s", EVENT, format % args)

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def _allowed(self) -> bool:
        certificate = self.connection.getpeercert(binary_form=True)
        return certificate is not None and hmac.compare_digest(
            hashlib.sha256(certificate).hexdigest(),
            self.context.options.client_sha256.lower(),
        )

    def _body(self) -> Fields:
        length = self._length()
        if not 0 <= length <= _MAX_BODY:
            raise InputError(EVENT + ".length", "the body is too large")
        if not length:
            return Fields({}, EVENT + ".body")
        self.taken = True
        return Fields(
            parse_json(self.rfile.read(length), _MAX_BODY), EVENT + ".body"
        )

    def _length(self) -> int:
        try:
            return int(self.headers.get("Content-Length", "0"))
        except ValueError as exc:
            raise InputError(EVENT + ".length", "bad length") from exc

    def _drain(self) -> None:
        """Read a body that nobody took, to its bound, into nothing."""
        try:
            left = 0 if self.taken else min(self._length(), _MAX_DRAIN)
        except InputError:
            return
        while left > 0 and (data := self.rfile.read(min(left, _MAX_BODY))):
            left -= len(data)

    def _serve(self) -> None:
        try:
            if not self._allowed():
                raise Denied(
                    EVENT + ".client",
                    "this client certificate is not the pinned one",
                )
            handler = ROUTES.get((self.command, self.path))
            if handler is None:
                raise NotFound(EVENT + ".route", "no such thing here")
            with self.slots:
                document = handler(self.context, self._body())
            LOG.info("%s.served: %s %s", EVENT, self.command, self.path)
        except MHError as exc:
            LOG.warning("%s: %s %s: %s", EVENT, self.command, self.path, exc)
            self._answer(
                _status(exc),
                {"error": {"event": exc.event, "message": exc.message}},
            )
            self._drain()
            return
        self._answer(200, document)

    do_GET = do_POST = do_PUT = _serve


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        # a handshake that failed, a caller that went away: no answer is no
        LOG.info("%s.connection: a caller was dropped", EVENT)


class Listener:
    """Starts and stops the server's thread.

    :param pending: the launch that waits for a key URL, or None.
    :param migration: of this host's migration key.
    """

    def __init__(
        self,
        options: ListenerOptions,
        prover: Prover,
        pending: Callable[[str], KeyRequest | None],
        migration: MigrationTls | None = None,
    ) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.load_verify_locations(options.ca_file)
        tls.load_cert_chain(options.certificate_file, options.key_file)
        handler = type(
            "Handler",
            (_Handler,),
            {
                "context": _Context(options, prover, pending, migration),
                "slots": threading.BoundedSemaphore(_AT_ONCE),
            },
        )
        self._server = _Server(options.address, handler)
        self._server.socket = tls.wrap_socket(
            self._server.socket,
            server_side=True,
            do_handshake_on_connect=False,
        )
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="listener", daemon=True
        )

    @property
    def address(self) -> tuple[str, int]:
        """Where it really listens (port 0 in the options: any)."""
        host, port = self._server.socket.getsockname()[:2]
        return str(host), int(port)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

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
"""Calls to a host's trust agent.

TLS both ways, the peer's certificate checked against a CA and, where the
operator gave one, a pin; one connection per call, straight to the address
that was checked, no proxy, no redirect; bounded in size and in time.
"""

import hashlib
import hmac
import http.client
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from mh_attest.address import Address
from mh_core.encoding import MAX_JSON, b64u, canonical_json, parse_json
from mh_core.errors import (
    InputError,
    MHError,
    NotFound,
    Unavailable,
    VerificationError,
)
from mh_core.fields import Fields
from mh_core.tpm.ekcert import load_certificate
from mh_core.tpm.public import Public

EVENT = "attest.listener"
HOST_PATTERN = r"[A-Za-z0-9._\-]{1,255}"
NOTHING_PENDING = "agent.compat.nothing-pending"


@dataclass(frozen=True)
class Identity:
    """What a host says it is; proven by nothing yet."""

    host: str
    host_id: str
    ek_certificate: x509.Certificate
    ek: Public
    ak: Public


def client_context(
    certificate_file: str | None, key_file: str | None, ca_file: str | None
) -> ssl.SSLContext:
    """:raises Unavailable: ``attest.listener.configuration``."""
    try:
        if not (certificate_file and key_file and ca_file):
            raise ValueError("not set")
        context = ssl.create_default_context(cafile=ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate_file, key_file)
    except (OSError, ValueError) as exc:
        raise Unavailable(
            EVENT + ".configuration",
            "[listener_client] names no usable certificate, key and CA",
        ) from exc
    return context


class Listener:
    """One host's trust agent.

    :param pin: SHA-256 (hex) of its certificate's DER, or None.
    :param timeout: seconds a call may take, all of it.
    """

    def __init__(
        self,
        address: Address,
        pin: str | None,
        context: ssl.SSLContext,
        timeout: float,
    ) -> None:
        self._address = address
        self._pin = pin
        self._context = context
        self._timeout = timeout

    def identity(self) -> Identity:
        fields = Fields(self._call("GET", "/v1/identity"), EVENT + ".reply")
        try:
            identity = Identity(
                host=fields.text("host", pattern=HOST_PATTERN),
                host_id=fields.uuid("host_id"),
                ek_certificate=load_certificate(
                    fields.b64u("ek_certificate", maximum=16384)
                ),
                ek=Public.parse(fields.b64u("ek_public", maximum=1024)),
                ak=Public.parse(fields.b64u("ak_public", maximum=1024)),
            )
            fields.end()
        except InputError as exc:
            raise _reply(exc) from exc
        return identity

    def activate(self, credential: bytes, secret: bytes) -> bytes:
        """What the TPM opened; at most 64 bytes."""
        fields = Fields(
            self._call(
                "POST",
                "/v1/activate",
                {"credential": b64u(credential), "secret": b64u(secret)},
            ),
            EVENT + ".reply",
        )
        try:
            opened = fields.b64u("credential", maximum=64)
            fields.end()
        except InputError as exc:
            raise _reply(exc) from exc
        return opened

    def put_certificate(self, pem: str) -> None:
        self._call("PUT", "/v1/certificate", {"ak_certificate": pem})

    def host_quote(self, nonce: bytes) -> Any:
        """The evidence, as sent."""
        fields = Fields(
            self._call("POST", "/v1/host-quote", {"nonce": b64u(nonce)}),
            EVENT + ".reply",
        )
        try:
            evidence = fields.object("evidence")
            fields.end()
        except InputError as exc:
            raise _reply(exc) from exc
        return evidence

    def pending_release(self, nonce: bytes, key_url: str) -> tuple[Any, Any]:
        """Request and evidence, as sent.

        :raises NotFound: ``agent.compat.nothing-pending``.
        """
        fields = Fields(
            self._call(
                "POST",
                "/v1/pending-release",
                {"nonce": b64u(nonce), "key_url": key_url},
            ),
            EVENT + ".reply",
        )
        try:
            request = fields.object("request")
            evidence = fields.object("evidence")
            fields.end()
        except InputError as exc:
            raise _reply(exc) from exc
        return request, evidence

    def migration_quote(self, nonce: bytes) -> tuple[Any, Any]:
        """Public migration key (JWK) and evidence, as sent."""
        fields = Fields(
            self._call("POST", "/v1/migration-quote", {"nonce": b64u(nonce)}),
            EVENT + ".reply",
        )
        try:
            key = fields.object("jwk")
            evidence = fields.object("evidence")
            fields.end()
        except InputError as exc:
            raise _reply(exc) from exc
        return key, evidence

    # -- one call --------------------------------------------------------

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON object of a 200.

        :raises Unavailable: ``….silent``: no connection, or too slow.
        :raises VerificationError: ``….certificate``, ``.redirect``,
            ``.refused``, ``.size``, ``.reply``.
        """
        try:
            status, data = self._timed(method, path, body)
        except ssl.SSLCertVerificationError as exc:
            raise VerificationError(
                EVENT + ".certificate",
                "the listener's certificate is not from the configured CA "
                "or names another host",
            ) from exc
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise Unavailable(
                EVENT + ".silent", "the host's trust agent does not answer"
            ) from exc
        return _document(status, data)

    def _timed(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        deadline = time.monotonic() + self._timeout
        raw = socket.create_connection(
            (self._address.ip, self._address.port), self._timeout
        )
        try:
            sock = self._context.wrap_socket(
                raw,
                server_hostname=self._address.host,
                do_handshake_on_connect=False,
            )
        except BaseException:
            raw.close()
            raise
        # A timeout on a socket is per read: a peer that drips would hold
        # the thread. Shutting the connection down ends any read.
        left = max(deadline - time.monotonic(), 0.01)
        watch = threading.Timer(left, _cut, (sock,))
        watch.daemon = True
        watch.start()
        try:
            with sock:
                sock.do_handshake()
                self._check_pin(sock)
                answer = self._exchange(sock, method, path, body)
        finally:
            watch.cancel()
        if time.monotonic() > deadline:
            raise TimeoutError
        return answer

    def _check_pin(self, sock: ssl.SSLSocket) -> None:
        der = sock.getpeercert(binary_form=True) or b""
        if self._pin is not None and not hmac.compare_digest(
            hashlib.sha256(der).hexdigest(), self._pin
        ):
            raise VerificationError(
                EVENT + ".certificate",
                "the listener has another certificate than the one enrolled",
            )

    def _exchange(
        self, sock: ssl.SSLSocket, method: str, path: str, body: Any
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(
            self._address.host, self._address.port
        )
        connection.sock = sock
        headers = {"Connection": "close"}
        data = None
        if body is not None:
            data = canonical_json(body)
            headers["Content-Type"] = "application/json"
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(MAX_JSON + 1)


def _cut(sock: ssl.SSLSocket) -> None:
    try:
        # Not SSLSocket.shutdown(): that would let the reader go on in clear.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed already


def _document(status: int, data: bytes) -> Any:
    if len(data) > MAX_JSON:
        raise VerificationError(EVENT + ".size", "the answer is too large")
    if 300 <= status < 400:
        raise VerificationError(
            EVENT + ".redirect", "the listener redirects; nobody follows"
        )
    try:
        document = parse_json(data)
        if not isinstance(document, dict):
            raise InputError(EVENT + ".reply", "not a JSON object")
    except InputError as exc:
        raise _reply(exc) from exc
    if status == 200:
        return document
    error = document.get("error")
    event = error.get("event") if isinstance(error, dict) else None
    if status == 404 and event == NOTHING_PENDING:
        raise NotFound(NOTHING_PENDING, "no launch waits for this key")
    shown = event if isinstance(event, str) and event.isascii() else "none"
    raise VerificationError(
        EVENT + ".refused",
        f"the host's trust agent answered {status}, event {shown[:64]!r}",
    )


def _reply(error: MHError) -> VerificationError:
    # The caller of this server sent no malformed input: the host did.
    return VerificationError(
        EVENT + ".reply",
        f"the host's trust agent sent no such answer: {error.message} "
        f"[{error.event}]",
    )

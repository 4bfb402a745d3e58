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
"""The WSGI application: routes, and what every request passes through."""

import logging
import time
import uuid
from typing import Any

import falcon
import sqlalchemy as sa
from oslo_config import cfg

from mh_attest.auth import Gate
from mh_attest.db.engine import unavailable
from mh_attest.errors import TooLarge, Unauthorized, audit_of
from mh_attest.handlers.base import Call
from mh_attest.routes import QUERY, ROUTES, Route
from mh_attest.service import Origin, Service
from mh_attest.trust import TrustBoard
from mh_core.encoding import MAX_JSON, canonical_json, parse_json
from mh_core.errors import (
    Conflict,
    Denied,
    InputError,
    MHError,
    NotFound,
    Unavailable,
    VerificationError,
)

LOG = logging.getLogger(__name__)

#: Quarters of the limit that are read of a body beyond it, and dropped.
DRAIN = 16

STATUS: dict[type[MHError], int] = {
    InputError: 400,
    Unauthorized: 401,
    Denied: 403,
    VerificationError: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    Unavailable: 503,
}


class RequestLog:
    """Request id first, one INFO line last."""

    def process_request(self, req: Any, resp: Any) -> None:
        req.context.request_id = f"req-{uuid.uuid4()}"
        req.context.started = time.monotonic()
        req.context.caller = ""
        req.context.event = ""
        resp.set_header("X-Request-Id", req.context.request_id)
        resp.set_header("Cache-Control", "no-store")

    def process_response(
        self, req: Any, resp: Any, _resource: Any, _ok: bool
    ) -> None:
        LOG.info(
            "%s %s %s %d %d ms caller=%s event=%s",
            req.context.request_id,
            req.method,
            # A path may hold anything; the line holds only the line.
            req.path[:200].encode("unicode_escape").decode(),
            resp.status_code,
            (time.monotonic() - req.context.started) * 1000,
            req.context.caller,
            req.context.event,
        )


class Resource:
    """A path of the route table, as falcon wants it."""

    def __init__(
        self,
        path: str,
        routes: dict[str, Route],
        service: Service,
        board: TrustBoard,
        gate: Gate,
    ) -> None:
        self._query = QUERY.get(path, ())
        self._service = service
        self._board = board
        self._gate = gate
        for method, route in routes.items():
            setattr(self, f"on_{method.lower()}", self._responder(route))

    def _responder(self, route: Route) -> Any:
        handler, rule = route

        def respond(req: Any, resp: Any, **path: str) -> None:
            if rule is not None:
                caller = self._gate.caller(req.get_header("Authorization"))
                req.context.caller = caller.name
                self._gate.require(caller, rule)
            unknown = set(req.params) - set(self._query)
            if unknown or not all(
                isinstance(value, str) for value in req.params.values()
            ):
                raise InputError(
                    "attest.api.query", "a query member is not known here"
                )
            call = Call(
                service=self._service,
                board=self._board,
                origin=Origin(req.context.caller, req.context.request_id),
                body=_body(req),
                path=path,
                query=req.params,
            )
            status, document = handler(call)
            resp.status = status
            if call.audit:
                resp.set_header("X-Audit-Id", call.audit)
            if document is not None:
                _fill(resp, document)

        return respond


def _body(req: Any) -> Any:
    if req.method not in ("POST", "PUT"):
        return None
    if (req.content_length or 0) > MAX_JSON:
        # Closing with some unread would reset the connection, and the
        # caller would not learn why; but nobody reads for ever.
        for _part in range(DRAIN):
            if not req.bounded_stream.read(MAX_JSON // 4):
                break
        raise TooLarge("attest.api.too-large", "the body is over 2 MiB")
    return parse_json(req.bounded_stream.read(MAX_JSON + 1))


def _fill(resp: Any, document: dict[str, Any]) -> None:
    resp.content_type = "application/json"
    resp.data = canonical_json(document)


def _answer(
    req: Any, resp: Any, status: int, event: str, message: str, audit: str = ""
) -> None:
    req.context.event = event
    resp.status = status
    if status == 401:
        resp.set_header("WWW-Authenticate", "Bearer")
    _fill(
        resp,
        {
            "error": {
                "event": event,
                "message": message,
                "request_id": req.context.request_id,
                "audit": audit,
            }
        },
    )


def _known(req: Any, resp: Any, exc: MHError, _params: Any) -> None:
    status = next((s for k, s in STATUS.items() if isinstance(exc, k)), 0)
    if not status:
        return _unforeseen(req, resp, exc, _params)
    _answer(req, resp, status, exc.event, exc.message, audit_of(exc))


def _http(req: Any, resp: Any, exc: falcon.HTTPError, _params: Any) -> None:
    status = exc.status_code
    event = {404: "attest.api.route", 405: "attest.api.method"}.get(
        status, "attest.api.request"
    )
    for name, value in (exc.headers or {}).items():
        resp.set_header(name, value)
    _answer(req, resp, status, event, exc.title or "refused")


def _database(req: Any, resp: Any, exc: Any, _params: Any) -> None:
    LOG.error("the database failed: %s", type(exc).__name__)
    error = unavailable(exc)
    _answer(req, resp, 503, error.event, error.message)


def _unforeseen(req: Any, resp: Any, exc: Exception, _params: Any) -> None:
    # The last resort: nobody gets an answer but "no", and no detail.
    LOG.error(
        "%s: unforeseen %s",
        req.context.request_id,
        type(exc).__name__,
        exc_info=exc,
    )
    _answer(req, resp, 500, "attest.internal", "an internal error")


class Application:
    """The WSGI callable; :meth:`close` ends its threads."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self.service = Service.create(conf)
        self.board = TrustBoard(self.service)
        gate = Gate(conf, self.service)
        app = falcon.App(middleware=[RequestLog()])
        app.req_options.strip_url_path_trailing_slash = False
        app.req_options.auto_parse_form_urlencoded = False
        # The most general first: falcon asks the last one added first.
        app.add_error_handler(Exception, _unforeseen)
        app.add_error_handler(sa.exc.SQLAlchemyError, _database)
        app.add_error_handler(falcon.HTTPError, _http)
        app.add_error_handler(MHError, _known)
        for path, routes in ROUTES.items():
            app.add_route(
                path, Resource(path, routes, self.service, self.board, gate)
            )
        self._app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self._app(environ, start_response)

    def close(self) -> None:
        self.board.close()
        self.service.journal.close()
        self.service.engine.dispose()


def deploy(conf: cfg.ConfigOpts) -> Application:
    """The server as configured.

    :raises Unavailable: ``attest.authority.keys``: no keys are there yet.
    """
    return Application(conf)

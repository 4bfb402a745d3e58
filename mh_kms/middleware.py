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

"""Between HTTP and the handlers: request id, log line, limits, errors."""

import logging
import time
import traceback
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import falcon

from mh_core.encoding import MAX_JSON, canonical_json
from mh_core.errors import InputError, MHError, NotFound
from mh_core.secret import redact
from mh_kms.access import authenticate
from mh_kms.api.call import EVENT, Call
from mh_kms.errors import NotAllowed, TooLarge, audit, status
from mh_kms.parts import Parts

if TYPE_CHECKING:
    from mh_kms.handler import Route

LOG = logging.getLogger(__name__)


class RequestLog:
    """Request ids, and one line about each request."""

    def process_request(
        self, req: falcon.Request, resp: falcon.Response
    ) -> None:
        req.context.request_id = f"req-{uuid.uuid4()}"
        req.context.begin = time.monotonic()
        req.context.caller = "-"
        req.context.event = "-"

    def process_response(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        resource: Any,
        req_succeeded: bool,
    ) -> None:
        resp.set_header("X-Request-Id", req.context.request_id)
        resp.set_header("Cache-Control", "no-store")
        LOG.info(
            "%s %s %s %s %.1f ms caller=%s event=%s",
            req.context.request_id,
            req.method,
            # A path may hold anything; the line holds only the line.
            req.path[:256].encode("unicode_escape").decode(),
            resp.status_code,
            (time.monotonic() - req.context.begin) * 1000,
            req.context.caller,
            req.context.event,
        )


class Resource:
    """Methods of one route, for Falcon."""

    def __init__(self, parts: Parts, methods: Mapping[str, "Route"]) -> None:
        for method, route in methods.items():
            setattr(self, f"on_{method.lower()}", _responder(parts, route))


def _responder(parts: Parts, route: "Route") -> Any:
    def respond(
        req: falcon.Request, resp: falcon.Response, **params: str
    ) -> None:
        caller = None
        if route.token:
            caller = authenticate(
                parts.database, req.get_header("Authorization")
            )
            req.context.caller = caller.name
        host = f"https://{req.get_header('Host')}"
        call = Call(
            parts=parts,
            request_id=req.context.request_id,
            path=req.path,
            params=params,
            query=_query(req),
            origin=host if host in parts.origins else parts.origin,
            body=_body(req),
            identity=caller,
        )
        answer = route.handle(call)
        resp.status = answer.status
        if answer.text is not None:
            resp.content_type = answer.content_type
            resp.text = answer.text
        elif answer.body is not None:
            resp.content_type = answer.content_type
            resp.data = canonical_json(answer.body)

    return respond


def _query(req: falcon.Request) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in req.params.items():
        if not isinstance(value, str):
            raise InputError("kms.api.query", "a parameter appears twice")
        query[name] = value
    return query


def _body(req: falcon.Request) -> bytes:
    """The whole body.

    :raises TooLarge: ``kms.api.size``.
    :raises InputError: ``kms.api.body``: its length is not told.
    """
    if req.get_header("Transfer-Encoding") is not None:
        raise InputError(EVENT, "a Content-Length is needed")
    length: int = req.content_length or 0
    if length > MAX_JSON:
        raise TooLarge("kms.api.size", f"at most {MAX_JSON} bytes are read")
    data: bytes = req.bounded_stream.read(length) if length else b""
    if len(data) != length:
        raise InputError(EVENT, "the body is shorter than announced")
    return data


# -- errors ----------------------------------------------------------------


def install_errors(app: falcon.App) -> None:
    app.add_error_handler(Exception, _unforeseen)
    app.add_error_handler(falcon.HTTPError, _http)
    app.add_error_handler(MHError, _ours)


def _answer(
    req: falcon.Request,
    resp: falcon.Response,
    code: int,
    event: str,
    message: str,
    number: str = "",
) -> None:
    req.context.event = event
    resp.status = code
    resp.content_type = falcon.MEDIA_JSON
    resp.text = None
    resp.data = canonical_json(
        {
            "error": {
                "event": event,
                "message": redact(message),
                "request_id": req.context.request_id,
                "audit": number,
            }
        }
    )


def _ours(
    req: falcon.Request, resp: falcon.Response, exc: MHError, params: Any
) -> None:
    code = status(exc)
    if code == 500:
        _unforeseen(req, resp, exc, params)
        return
    if code == 401:
        resp.set_header("WWW-Authenticate", "Bearer")
    _answer(req, resp, code, exc.event, exc.message, audit(exc))


def _http(
    req: falcon.Request,
    resp: falcon.Response,
    exc: falcon.HTTPError,
    params: Any,
) -> None:
    """What Falcon itself refuses: no route, no method, a bad header."""
    error: MHError
    if exc.status_code == 404:
        error = NotFound("kms.api.path", "there is nothing at this path")
    elif exc.status_code == 405:
        error = NotAllowed("kms.api.method", "the path has no such method")
        resp.set_headers(exc.headers or {})
    elif exc.status_code == 413:
        error = TooLarge("kms.api.size", "the body is too large")
    elif exc.status_code < 500:
        error = InputError("kms.api.request", "the request is malformed")
    else:
        _unforeseen(req, resp, exc, params)
        return
    _ours(req, resp, error, params)


def _unforeseen(
    req: falcon.Request, resp: falcon.Response, exc: Exception, params: Any
) -> None:
    """The last boundary: no, without detail; the log has the detail."""
    LOG.error(
        "%s unforeseen: %s",
        req.context.request_id,
        redact("".join(traceback.format_exception(exc))),
    )
    _answer(
        req,
        resp,
        500,
        "kms.internal",
        "an error that was not foreseen; the server's log says more",
    )

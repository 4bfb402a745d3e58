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
"""One small REST client for our own two services.

TLS is always verified; no redirect is followed; answers are bounded in size
and time; proxies and ``.netrc`` of the environment are not looked at, since
``.netrc`` would replace our token.  What a server says in an error is shown
to people, cleaned, and never believed.
"""

import json
import re
import time
from typing import Any

import requests

from mh_client.config import Endpoint
from mh_core import errors
from mh_core.encoding import MAX_JSON, parse_json
from mh_core.errors import InputError, MHError, Unavailable
from mh_core.fields import Fields
from mh_core.secret import redact

EVENT = "client.rest"
#: Seconds to connect, and without a byte.
TIMEOUT = (10.0, 60.0)
#: Seconds for a whole answer.
DEADLINE = 120.0
_EVENT_ID = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+){1,12}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_KINDS: dict[int, type[MHError]] = {
    400: errors.InputError,
    401: errors.Denied,
    403: errors.Denied,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.InputError,
    503: errors.Unavailable,
}


class Rest:
    """
    :param endpoint: where, which CA, which token.
    :param service: for messages, e.g. ``key server``.
    """

    def __init__(self, endpoint: Endpoint, service: str) -> None:
        self.url = endpoint.url
        self._endpoint = endpoint
        self._service = service
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Accept"] = "application/json"

    def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        auth: bool = True,
        params: dict[str, str] | None = None,
    ) -> Any:
        """One request; the JSON of a 2xx answer, ``None`` for 204.

        :raises MHError: the kind and event id that the server sent, or
            ``client.rest.*`` where it sent none.
        """
        headers = {}
        data = None
        if body is not None:
            data = json.dumps(body, ensure_ascii=True).encode()
            headers["Content-Type"] = "application/json"
        if auth:
            headers["Authorization"] = self._authorization()
        try:
            with self._session.request(
                method,
                self.url + path,
                data=data,
                params=params,
                headers=headers,
                verify=self._endpoint.ca_file or True,
                timeout=TIMEOUT,
                allow_redirects=False,
                stream=True,
            ) as response:
                status = response.status_code
                content = self._read(response)
        except requests.exceptions.SSLError as exc:
            raise Unavailable(
                EVENT + ".tls",
                f"the {self._service} at {self.url} has no certificate that "
                "ca_file vouches for",
            ) from exc
        except (requests.exceptions.RequestException, OSError) as exc:
            raise Unavailable(
                EVENT + ".connection",
                f"the {self._service} at {self.url} does not answer "
                f"({type(exc).__name__})",
            ) from exc
        return self._answer(status, content)

    def _authorization(self) -> str:
        token = self._endpoint.token()
        if token is None:
            raise InputError(
                EVENT + ".token",
                f"the {self._service} wants a token: set token_file in the "
                "client's configuration",
            )
        return "Bearer " + token.reveal().decode("ascii")

    def _read(self, response: requests.Response) -> bytes:
        end = time.monotonic() + DEADLINE
        parts: list[bytes] = []
        size = 0
        for part in response.iter_content(65536):
            size += len(part)
            if size > MAX_JSON or time.monotonic() > end:
                raise InputError(
                    EVENT + ".size",
                    f"the answer of the {self._service} is too large",
                )
            parts.append(part)
        return b"".join(parts)

    def _answer(self, status: int, content: bytes) -> Any:
        if 200 <= status < 300:
            return parse_json(content) if content else None
        if 300 <= status < 400:
            raise InputError(
                EVENT + ".redirect",
                f"the {self._service} answers with a redirect; none is "
                "followed",
            )
        event, message = self._error(status, content)
        raise _KINDS.get(status, MHError)(event, message)

    def _error(self, status: int, content: bytes) -> tuple[str, str]:
        try:
            fields = Fields(
                Fields(parse_json(content), EVENT).object("error"), EVENT
            )
            event = fields.text("event", maximum=128)
            message = fields.text("message", maximum=2048, default="")
            audit = fields.text("audit", maximum=128, default="")
        except MHError:
            event = message = audit = ""
        if not _EVENT_ID.fullmatch(event):
            event = EVENT + ".status"
            message = f"the {self._service} answered {status}"
        if audit:
            message += f" (audit {audit})"
        return event, str(redact(_CONTROL.sub(" ", message)))

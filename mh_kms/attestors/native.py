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

"""Attestor for this project's own attestation server (mh_attest)."""

import re
import threading
from typing import Any

import requests
from oslo_config import cfg

from mh_core.encoding import MAX_JSON, b64u, canonical_json, parse_json
from mh_core.errors import (
    InputError,
    MHError,
    Unavailable,
    VerificationError,
)
from mh_core.evidence import Evidence
from mh_core.fields import Fields
from mh_core.request import KeyRequest
from mh_core.secret import Secret
from mh_kms.attestors.base import Attestor, Pending, Question
from mh_kms.release_policy import Authority

_ANSWER = "kms.authority.answer"
_EVENT_ID = re.compile(r"(?=.{1,128}\Z)[a-z0-9\-]+(\.[a-z0-9\-]+)+")
_REFUSALS = frozenset((400, 403, 404, 409))


def _silent(why: str) -> Unavailable:
    return Unavailable("kms.authority.silent", f"the authority {why}")


class NativeAttestor(Attestor):
    """``POST /v1/appraisals`` and ``/v1/compat/appraisals`` over TLS."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._verify: str | bool = conf.authority.ca_file or True
        self._timeout: float = conf.authority.timeout
        self._tokens = {
            origin: _read_token(path)
            for origin, path in conf.authority.tokens.items()
        }
        self._local = threading.local()

    def appraise(self, authority: Authority, question: Question) -> str:
        body = {
            "nonce": b64u(question.nonce),
            "audience": question.audience,
            "request_digest": question.request_digest.hex(),
            "evidence": question.evidence.to_dict(),
        }
        if question.purpose != "release":
            body["purpose"] = question.purpose
        fields = self._post(authority, "/v1/appraisals", body)
        result = fields.text("result", maximum=65536)
        fields.text("audit", maximum=128, default="")
        fields.end()
        return result

    def fetch(
        self,
        authority: Authority,
        nonce: bytes,
        audience: str,
        key_url: str,
        ak_pem: str,
    ) -> Pending:
        fields = self._post(
            authority,
            "/v1/compat/appraisals",
            {
                "nonce": b64u(nonce),
                "audience": audience,
                "key_url": key_url,
                "ak_pem": ak_pem,
            },
        )
        pending = Pending(
            result=fields.text("result", maximum=65536),
            request=KeyRequest.parse(fields.object("request")),
            evidence=Evidence.parse(fields.object("evidence")),
        )
        fields.text("audit", maximum=128, default="")
        fields.end()
        return pending

    # -- the wire ----------------------------------------------------------

    def _session(self) -> requests.Session:
        session: requests.Session | None
        session = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            # No proxy and no netrc from the environment.
            session.trust_env = False
            self._local.session = session
        return session

    def _post(
        self, authority: Authority, path: str, body: dict[str, Any]
    ) -> Fields:
        token = self._tokens.get(authority.url)
        if token is None:
            raise Unavailable(
                "kms.authority.not-listed",
                "the authority is not in [authority] tokens of this server",
            )
        data = canonical_json(body)
        try:
            status, answer = self._exchange(authority.url + path, data, token)
        except (requests.ConnectionError, requests.Timeout):
            # Not chained: the library's message names what was sent where.
            raise _silent("does not answer") from None
        except requests.RequestException:
            raise _silent("does not speak HTTP") from None
        if status == 200:
            return Fields(parse_json(answer), _ANSWER)
        if status in _REFUSALS:
            raise _refusal(answer)
        raise _silent(f"answers with status {status}")

    def _exchange(
        self, url: str, data: bytes, token: Secret
    ) -> tuple[int, bytes]:
        """Status and body; a connection that went stale is made anew."""
        kept = getattr(self._local, "session", None) is not None
        try:
            return self._once(url, data, token)
        except requests.Timeout:
            raise
        except requests.ConnectionError:
            if not kept:
                raise
            self._local.session.close()
            self._local.session = None
            return self._once(url, data, token)

    def _once(self, url: str, data: bytes, token: Secret) -> tuple[int, bytes]:
        with self._session().post(
            url,
            data=data,
            headers={
                "Authorization": "Bearer " + token.reveal().decode(),
                "Content-Type": "application/json",
            },
            verify=self._verify,
            timeout=self._timeout,
            allow_redirects=False,
            stream=True,
        ) as response:
            return response.status_code, _bounded(response)


def _read_token(path: str) -> Secret:
    try:
        with open(path, "rb") as file:
            token = file.read(4096).strip()
    except OSError as exc:
        raise Unavailable(
            "kms.authority.token", "a token file cannot be read"
        ) from exc
    if not token or not token.isascii() or len(token.split()) != 1:
        raise Unavailable("kms.authority.token", "a token file has no token")
    return Secret(token)


def _bounded(response: requests.Response) -> bytes:
    data = bytearray()
    for chunk in response.iter_content(65536):
        data += chunk
        if len(data) > MAX_JSON:
            raise InputError(_ANSWER, "the authority's answer is too long")
    return bytes(data)


def _refusal(data: bytes) -> MHError:
    """The authority's "no", under its own event id."""
    event: Any = None
    try:
        document = parse_json(data, 65536)
        if isinstance(document, dict):
            error = document.get("error")
            event = error.get("event") if isinstance(error, dict) else None
    except InputError:
        event = None
    if not isinstance(event, str) or not _EVENT_ID.fullmatch(event):
        event = "kms.authority.refused"
    return VerificationError(event, "the authority refused")

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
"""Asking the attestation server: its nonce, our quote, its answer."""

from collections.abc import Callable
from typing import Any

from mh_core.encoding import canonical_json, parse_json
from mh_core.errors import Denied, InputError
from mh_core.fields import Fields
from mh_nova.agent.http import Server, resolve, split_url


def ask(
    conf: Any,
    who: str,
    purpose: str,
    path: str,
    body: Callable[[bytes], dict[str, Any]],
) -> Fields:
    """One question that a quote over the server's own nonce backs.

    :param conf: ``[agent]`` options: attest_url, attest_ca_file, timeout.
    :param who: what event ids start with, e.g. ``agent.report``.
    :param purpose: of the nonce.
    :param path: of the REST interface, from ``/v1`` on.
    :param body: the request for a nonce (32 bytes), without the nonce.
    :returns: the members of the answer.
    :raises Denied: ``<who>.url|address|refused|redirect|answer``.
    :raises Unavailable: ``<who>.unavailable``.
    :raises InputError: ``<who>.answer``.
    :raises MHError: of ``body``.
    """
    origin, base = split_url(conf.attest_url, who + ".url")
    base = base.rstrip("/").removesuffix("/v1")
    if origin.scheme != "https":
        raise Denied(who + ".url", "attest_url is not https")
    server = Server(
        origin,
        resolve(origin, who + ".address", loopback=True),
        conf.attest_ca_file,
        conf.timeout,
        who,
    )
    try:
        fields = _post(server, who, base + "/v1/nonces", {"purpose": purpose})
        text = fields.text("nonce", maximum=64)
        nonce = Fields({"nonce": text}, who + ".answer").b64u("nonce", 32)
        return _post(server, who, base + path, {"nonce": text, **body(nonce)})
    finally:
        server.close()


def _post(server: Server, who: str, path: str, body: dict[str, Any]) -> Fields:
    answer = server.post(path, canonical_json(body), "application/json")
    if answer.status not in (200, 201):
        raise Denied(
            who + ".refused",
            f"the attestation server answers {answer.status} "
            f"{_event(answer.body)}",
        )
    return Fields(parse_json(answer.body), who + ".answer")


def _event(body: bytes) -> str:
    try:
        error = Fields(parse_json(body), "agent.authority").object("error")
        return Fields(error, "agent.authority").text(
            "event", pattern=r"[a-z0-9.\-]*"
        )
    except InputError:
        return ""

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
"""How is a host now?  Asked of the host, and remembered for a while."""

import concurrent.futures
import threading
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from mh_attest.db import host_policies, hosts
from mh_attest.enrolment import host_question
from mh_attest.service import Origin, Service
from mh_core.errors import InputError, MHError

EVENT = "attest.trust"
NOT_ENROLLED = EVENT + ".not-enrolled"
TIMEOUT = EVENT + ".timeout"


class TrustBoard:
    """Trust states; one question at a time per host.

    A state is believed until it expires.  One past half its life is asked
    for again behind the answer, so that a steady asker never waits.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        # a flight that has landed already calls back in this very thread
        self._lock = threading.RLock()
        self._flights: dict[str, concurrent.futures.Future[None]] = {}
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def ask(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Answer for each name, within ``[trust] timeout`` and a little."""
        service = self._service
        conf = service.conf.trust
        with service.reading() as connection:
            rows = hosts.by_names(connection, names)
        flights = []
        for host in rows.values():
            left = _left(host, service.now(), conf.max_age)
            if left <= 0:
                flights.append(self._fly(host))
            elif left * 2 <= conf.max_age and host.level != hosts.UNKNOWN:
                self._fly(host)
        if flights:
            concurrent.futures.wait(flights, timeout=conf.timeout + 0.2)
        with service.reading() as connection:
            if flights:
                rows = hosts.by_names(connection, names)
            tags = {
                group: policy.tags
                for group in {host.grp for host in rows.values()}
                if (policy := host_policies.get(connection, group))
            }
        return {name: self._answer(rows.get(name), tags) for name in names}

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(
        self, host: hosts.Host | None, tags: dict[str, dict[str, str]]
    ) -> dict[str, Any]:
        conf = self._service.conf.trust
        if host is None:
            return {
                "level": hosts.UNKNOWN,
                "expires_in": conf.retry_after,
                "event": NOT_ENROLLED,
                "tags": {},
            }
        left = _left(host, self._service.now(), conf.max_age)
        return {
            "level": host.level if left > 0 else hosts.UNKNOWN,
            "expires_in": left if left > 0 else conf.retry_after,
            "event": host.event if left > 0 else TIMEOUT,
            "tags": {**tags.get(host.grp, {}), **host.tags},
        }

    # -- asking a host ---------------------------------------------------

    def _fly(self, host: hosts.Host) -> concurrent.futures.Future[None]:
        with self._lock:
            flight = self._flights.get(host.id)
            if flight is None:
                if self._pool is None:
                    self._pool = concurrent.futures.ThreadPoolExecutor(
                        self._service.conf.trust.threads, "mh-attest-trust"
                    )
                flight = self._pool.submit(self._refresh, host)
                self._flights[host.id] = flight
                flight.add_done_callback(lambda _done: self._land(host.id))
            return flight

    def _land(self, host_id: str) -> None:
        with self._lock:
            self._flights.pop(host_id, None)

    def _refresh(self, host: hosts.Host) -> None:
        try:
            refresh(self._service, host)
        except MHError as exc:
            silent(self._service, host, exc)


def _left(host: hosts.Host, now: int, max_age: int) -> int:
    """Seconds a state is still good for; a clock set back ends it."""
    if host.appraised_at > now + 1 or host.expires_at > now + max_age:
        return 0
    return host.expires_at - now


def refresh(service: Service, host: hosts.Host) -> None:
    """Ask a host for a quote over a fresh nonce and keep the verdict.

    :raises MHError: it did not answer, or with no evidence.
    """
    asked_at = service.now()
    agent = service.listener(
        host.listener, host.listener_sha256, service.conf.trust.timeout
    )
    nonce = service.random(32)
    evidence = service.driver.parse(agent.host_quote(nonce))
    appraisal = service.appraise(evidence, host_question(nonce))
    if appraisal.host is None or appraisal.host.id != host.id:
        # Another host's evidence says nothing about this one.
        raise InputError(
            "attest.appraise.host", "the listener answers for another host"
        )

    def state(connection: sa.Connection) -> None:
        # Without a proof as well: this came over the host's own listener.
        if appraisal.proof is None:
            service.set_state(connection, appraisal, asked_at)

    service.keep(
        appraisal,
        Origin("", ""),
        {"purpose": "trust"},
        asked_at=asked_at,
        also=state,
    )


def silent(service: Service, host: hosts.Host, error: MHError) -> None:
    """Note that a host gave no answer; a state still good stays."""
    now = service.now()

    def change(connection: sa.Connection) -> None:
        current = hosts.by_name(connection, host.name)
        if current is None or current.expires_at > now:
            return
        hosts.set_state(
            connection,
            host.id,
            hosts.UNKNOWN,
            error.event,
            now,
            now + service.conf.trust.retry_after,
        )

    service.journal.write(None, change)

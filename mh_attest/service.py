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
"""What a running server is made of, and what its decisions share."""

import contextlib
import os
import pathlib
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from oslo_config import cfg
from stevedore import driver as stevedore_driver

from mh_attest import address, listener, verifier
from mh_attest.authority import Authority
from mh_attest.authority import load as load_authority
from mh_attest.db import engine as db_engine
from mh_attest.db import host_policies, hosts
from mh_attest.errors import with_audit
from mh_attest.evidence.base import EvidenceDriver, Question
from mh_attest.host_policy import HostPolicy
from mh_attest.journal import Change, Journal
from mh_core.errors import Denied, MHError

NAMESPACE = "mh_attest.evidence"
#: Judgements kept, and event logs' worth of work saved.
JUDGEMENTS = 4096


class JudgementCache(OrderedDict[bytes, verifier.Judgement]):
    """The newest judgements, for threads."""

    def __init__(self, size: int = JUDGEMENTS) -> None:
        super().__init__()
        self._size = size
        self._lock = threading.Lock()

    def __setitem__(self, key: bytes, value: verifier.Judgement) -> None:
        with self._lock:
            super().__setitem__(key, value)
            while len(self) > self._size:
                self.popitem(last=False)


@dataclass(frozen=True)
class Origin:
    """Who asked, for the audit record."""

    caller: str = ""
    request_id: str = ""

    def record(self) -> dict[str, str]:
        return {"caller": self.caller, "request_id": self.request_id}


@dataclass
class Service:
    """Handed to every handler; nothing in the server is global.

    :param clock: seconds since the epoch.
    :param random: cryptographic random source.
    """

    conf: cfg.ConfigOpts
    engine: sa.Engine
    authority: Authority
    journal: Journal
    driver: EvidenceDriver
    clock: Callable[[], float] = time.time
    random: Callable[[int], bytes] = os.urandom
    judgements: verifier.Judgements = field(default_factory=JudgementCache)

    @classmethod
    def create(cls, conf: cfg.ConfigOpts) -> "Service":
        """:raises Unavailable: ``attest.authority.keys``."""
        authority = load_authority(
            pathlib.Path(conf.authority.state_dir), conf.authority.issuer
        )
        engine = db_engine.connect(conf)
        driver = stevedore_driver.DriverManager(
            NAMESPACE, conf.authority.evidence, invoke_on_load=True
        ).driver
        journal = Journal(
            engine, str(uuid.uuid4()), authority.result_key, time.time
        )
        return cls(conf, engine, authority, journal, driver)

    def now(self) -> int:
        return int(self.clock())

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """:raises Unavailable: ``attest.database``."""
        try:
            with self.engine.connect() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as exc:
            raise db_engine.unavailable(exc) from None

    def listener(
        self, url: str, pin: str | None, timeout: float
    ) -> listener.Listener:
        """A client for a host's trust agent; the address is checked anew.

        :raises MHError: ``attest.listener.address|resolve|configuration``.
        """
        allowed = address.networks(self.conf.enrolment.listener_networks)
        client = self.conf.listener_client
        return listener.Listener(
            address.check(url, allowed),
            pin,
            listener.client_context(
                client.certificate_file, client.key_file, client.ca_file
            ),
            timeout,
        )

    # -- decisions -------------------------------------------------------

    def appraise(
        self,
        evidence: Any,
        question: Question,
        find_host: Callable[[bytes], verifier.KnownHost | None] | None = None,
    ) -> verifier.Appraisal:
        """:func:`mh_attest.verifier.appraise` on what is stored."""
        with self.reading() as connection:

            def stored(ak_name: bytes) -> verifier.KnownHost | None:
                return known(hosts.by_ak_name(connection, ak_name))

            def policy(group: str) -> HostPolicy | None:
                return host_policies.get(connection, group)

            return verifier.appraise(
                evidence,
                question,
                driver=self.driver,
                find_host=find_host or stored,
                find_policy=policy,
                enrollers=[self.authority.enroller],
                now=datetime.fromtimestamp(self.clock(), UTC),
                judgements=self.judgements,
            )

    def keep(
        self,
        appraisal: verifier.Appraisal,
        origin: Origin,
        facts: dict[str, Any],
        asked_at: int | None = None,
        also: Change | None = None,
    ) -> str:
        """Record an appraisal; the id of the record.

        :param asked_at: set where the nonce was this server's own: only
            then does the answer say how the host is *now*.
        """

        proof, host = appraisal.proof, appraisal.host

        def change(connection: sa.Connection) -> None:
            if host is not None and proof is not None:
                hosts.set_counters(
                    connection, host.id, proof.reset, proof.restart
                )
                if asked_at is not None:
                    self.set_state(connection, appraisal, asked_at)
            if also is not None:
                also(connection)

        # The rule while a host is up: its release changes nothing here.
        same = (
            host is not None
            and proof is not None
            and (proof.reset, proof.restart) == (host.reset, host.restart)
        )
        return self.journal.write(
            {**appraisal_record(appraisal), **origin.record(), **facts},
            None if same and asked_at is None and also is None else change,
        )

    def set_state(
        self,
        connection: sa.Connection,
        appraisal: verifier.Appraisal,
        asked_at: int,
    ) -> None:
        """Keep an appraisal as the host's state.

        A host policy that changed since is not waited for: the state
        expires at once.
        """
        host = appraisal.host
        if host is None:
            return
        expires = asked_at + self.conf.trust.max_age
        now_allowed = policy_print(host_policies.get(connection, host.group))
        if appraisal.proof is not None and appraisal.policy != now_allowed:
            expires = 0
        hosts.set_state(
            connection,
            host.id,
            appraisal.level or hosts.UNTRUSTED,
            appraisal.event,
            asked_at,
            expires,
        )

    def refuse(
        self,
        error: MHError,
        event: str,
        origin: Origin,
        facts: dict[str, Any],
    ) -> MHError:
        """Record a refusal; the error to raise, with the record's id."""
        audit = self.journal.write(
            {
                "event": error.event,
                "decision": event,
                "events": [{"id": error.event, "detail": error.message}],
                **origin.record(),
                **facts,
            }
        )
        return with_audit(error, audit)


def policy_print(policy: HostPolicy | None) -> str:
    return "" if policy is None else policy.fingerprint()


def known(host: hosts.Host | None) -> verifier.KnownHost | None:
    if host is None:
        return None
    return verifier.KnownHost(
        host.id,
        host.name,
        host.grp,
        bytes.fromhex(host.ak_name),
        host.reset_count,
        host.restart_count,
        host.tags,
    )


def appraisal_record(appraisal: verifier.Appraisal) -> dict[str, Any]:
    record: dict[str, Any] = {
        "event": appraisal.event,
        "decision": "attest.appraise",
        "events": [
            {"id": event.id, "detail": event.detail}
            for event in appraisal.verdict.events
        ],
        "level": appraisal.level,
    }
    if appraisal.host is not None:
        record["host"] = appraisal.host.name
        record["host_id"] = appraisal.host.id
    if appraisal.proof is not None:
        record["reset"] = appraisal.proof.reset
        record["restart"] = appraisal.proof.restart
        record["clock_safe"] = appraisal.proof.safe
    return record


def require(appraisal: verifier.Appraisal, audit: str) -> None:
    """:raises Denied: the first event, every finding in its message."""
    if not appraisal.verdict.allowed:
        raise with_audit(Denied(appraisal.event, appraisal.detail), audit)

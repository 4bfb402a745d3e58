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
"""VM reports: what was started, quoted by the TPM, to the attestation server.

In the background: a guest does not wait for its report, and a server that is
away does not keep it from running.
"""

import logging
import queue
import threading
from typing import Any

from mh_core.errors import MHError
from mh_core.vm_report import VmClaims
from mh_nova.agent.authority import ask
from mh_nova.agent.interfaces import Prover
from mh_nova.agent.journal import Journal

LOG = logging.getLogger(__name__)
EVENT = "agent.report"
#: Seconds before each further try.
WAITS = (1.0, 5.0, 15.0, 60.0)
_WAITING = 256


class Reporter:
    """
    :param conf: ``[agent] attest_url``, ``attest_ca_file``, ``timeout``.
    """

    def __init__(
        self,
        conf: Any,
        prover: Prover,
        journal: Journal,
        waits: tuple[float, ...] = WAITS,
    ) -> None:
        self._conf = conf.agent
        self._prover = prover
        self._journal = journal
        self._waits = waits
        self._queue: queue.Queue[VmClaims | None] = queue.Queue(_WAITING)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="vm-report", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            pass

    def submit(self, claims: VmClaims) -> None:
        """Report soon; never blocks."""
        if not self._conf.attest_url:
            return
        try:
            self._queue.put_nowait(claims)
        except queue.Full:
            self._failed(claims, "too many reports are waiting")

    def _run(self) -> None:
        while (claims := self._queue.get()) is not None:
            self._try(claims)

    def _try(self, claims: VmClaims) -> None:
        for wait in (*self._waits, None):
            try:
                self.report(claims)
            except MHError as exc:
                LOG.warning(
                    "%s.failed instance=%s %s", EVENT, claims.instance, exc
                )
                if wait is None or self._stopped.wait(wait):
                    self._failed(claims, f"{exc.message} ({exc.event})")
                    return
                continue
            self._journal.write(
                EVENT + ".accepted", claims.instance, durable=False
            )
            return

    def _failed(self, claims: VmClaims, why: str) -> None:
        self._journal.write(
            EVENT + ".failed", claims.instance, why, durable=False
        )

    def report(self, claims: VmClaims) -> None:
        """One try.

        :raises MHError: ``agent.report.*``, or of the prover.
        """

        def body(nonce: bytes) -> dict[str, Any]:
            evidence = self._prover.vm_evidence(nonce, claims.digest())
            return {
                "claims": claims.to_dict(),
                "evidence": evidence.to_dict(),
            }

        ask(self._conf, EVENT, "vm-report", "/v1/vm-reports", body)

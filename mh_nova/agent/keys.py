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
"""The keys of one attempt: asked for early, opened at the gate.

What is kept while an image downloads is the JWE, which opens only in this
boot of this TPM; the keys themselves live from the gate to the start.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace

from mh_core import manifest, volume, vtpm
from mh_core.errors import MHError, Unavailable
from mh_core.request import Disk, KeyRequest
from mh_nova.agent.attempt import MAX_AGE, Attempt, Opened, Wrapped
from mh_nova.agent.interfaces import Prover
from mh_nova.agent.kms import KeyUrl, KmsClient
from mh_nova.agent.lease_store import boottime
from mh_nova.agent.release import open_release
from mh_nova.agent.store import InstanceRecord

LOG = logging.getLogger(__name__)
_AT_ONCE = 16
#: Purposes after which a guest runs; only these need the key of its TPM.
_RUNS = ("launch", "start", "migrate-in", "resize")


def key_request(
    record: InstanceRecord, url: KeyUrl, purpose: str, ticket: str
) -> KeyRequest:
    """The request for one instance's keys; its digest is what is quoted."""
    disks = tuple(Disk(disk.name, disk.luks_uuid) for disk in record.disks)
    if record.vtpm and purpose in _RUNS:
        disks += (vtpm.wanted(record.instance),)
    return KeyRequest(
        key_id=record.key_id,
        kms_origin=str(url.origin),
        purpose=purpose,
        instance=record.instance,
        project=record.project,
        user=record.user,
        host=record.host,
        image=record.image,
        manifest_digest=manifest.digest(record.manifest),
        disks=disks,
        ticket=ticket,
    )


def volume_request(
    record: InstanceRecord, url: KeyUrl, volumes: tuple[str, ...]
) -> KeyRequest:
    """The request for the keys of volumes, and of nothing else.

    :param volumes: their uuids.
    """
    return replace(
        key_request(record, url, volume.ATTACH, ""),
        disks=tuple(volume.wanted(one) for one in volumes),
    )


class Keys:
    """
    :param patience: seconds to wait for an answer that is under way.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        kms: KmsClient,
        prover: Prover,
        patience: float,
        clock: Callable[[], float],
    ) -> None:
        self._kms = kms
        self._prover = prover
        self._patience = patience
        self._clock = clock
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="key")

    def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def check_url(self, record: InstanceRecord) -> KeyUrl:
        """:raises Denied: ``agent.kms.key-url``, ``agent.kms.origin``."""
        return self._kms.check_url(
            record.key_url, record.key_id, record.compat
        )

    def ask(self, attempt: Attempt) -> "Future[Wrapped]":
        """In the background."""

        def fetch() -> Wrapped:
            try:
                return self._fetch(attempt)
            except MHError as exc:
                LOG.warning(
                    "%s instance=%s %s",
                    exc.event,
                    attempt.record.instance,
                    exc.message,
                )
                raise

        return self._pool.submit(fetch)

    def _fetch(self, attempt: Attempt) -> Wrapped:
        asked = boottime()
        jwe = self._kms.fetch(attempt.url, attempt.request)
        return Wrapped(jwe, time.monotonic(), asked)

    def open(self, attempt: Attempt) -> Opened:
        """At the gate: wait for the answer, ask again where it is older
        than :data:`MAX_AGE`, and open it.

        :raises MHError: of the key server, ``agent.release.*``.
        """
        wrapped: Wrapped | None = None
        if attempt.key is not None:
            try:
                wrapped = attempt.key.result(self._patience)
            except FutureTimeout as exc:
                raise Unavailable(
                    "agent.kms.unavailable", "the key server is too slow"
                ) from exc
            finally:
                attempt.key = None
        if wrapped is None or time.monotonic() - wrapped.obtained > MAX_AGE:
            wrapped = self._fetch(attempt)
        payload = open_release(
            wrapped.jwe,
            attempt.request,
            self._prover.unwrap,
            int(self._clock()),
        )
        attempt.opened = Opened(
            attempt.request, payload, time.monotonic(), wrapped.asked
        )
        attempt.measured = None
        return attempt.opened

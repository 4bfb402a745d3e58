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
"""TrustedFilter: a host passes if the attestation server vouches for it.

The flavor says ``trust:trusted_host=trusted``.  This keeps launches off
hosts that would be refused; what protects the tenant is the key server's
own decision at every start.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from nova import exception
from oslo_log import log as logging

from mh_core.errors import MHError
from mh_scheduler import conf as conf_module
from mh_scheduler.base import TrustFilter
from mh_scheduler.cache import State, TrustCache
from mh_scheduler.client import TrustClient
from mh_scheduler.names import EXTRA_SPEC, WANTED

LOG = logging.getLogger(__name__)

UNTRUSTED = "scheduler.filter.untrusted"
UNKNOWN = "scheduler.filter.unknown"
STALE = "scheduler.filter.stale"
SPEC = "scheduler.filter.extra-spec"


def _configured_cache() -> TrustCache:
    # Nova's own CONF: this code lives in nova-scheduler's process only.
    import nova.conf

    conf_module.register_opts(nova.conf.CONF)
    conf = nova.conf.CONF.mh_scheduler
    client = TrustClient(conf.attestation_url, conf.ca_file, conf.token_file)
    return TrustCache(
        client.ask,
        max_ttl=conf.ttl,
        max_batch=conf.max_batch,
        timeout=conf.timeout,
        retry_after=conf.retry_after,
    )


class TrustedFilter(TrustFilter):
    """``trust:trusted_host`` against the attestation server's word."""

    def __init__(self, cache: TrustCache | None = None) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._request = threading.local()
        #: Last reason logged, by host.
        self._said: dict[str, tuple[str, str]] = {}

    def _cache_of(self) -> TrustCache:
        with self._lock:
            if self._cache is None:
                self._cache = _configured_cache()
            return self._cache

    def _known(
        self, hosts: list[Any], wanted: str
    ) -> tuple[list[Any], list[Any]]:
        """Hosts that pass by what is known, and the others.

        Ten thousand hosts come through here at each launch.
        """
        get, now = self._cache_of().known().get, time.monotonic()
        passed: list[Any] = []
        rest: list[Any] = []
        for host in hosts:
            state = get(host.host)
            if (
                state is not None
                and state.level == wanted
                and state.expires > now
            ):
                passed.append(host)
            else:
                rest.append(host)
        return passed, rest

    def run_filter_for_index(self, index: int) -> bool:
        # Nova calls this just before filter_all, in the same thread.
        self._request.index = index
        return True

    def filter_all(
        self, filter_obj_list: Iterable[Any], spec_obj: Any
    ) -> list[Any]:
        """The hosts that pass.

        :raises nova.exception.NoValidHost: none does; with a reason that
            the user sees.  Only for the first instance of a request: later
            ones hold allocations that Nova gives back only where an empty
            list comes.
        """
        hosts = list(filter_obj_list)
        extra_specs = spec_obj.flavor.extra_specs
        wanted = extra_specs.get(EXTRA_SPEC) if extra_specs else None
        if wanted is None:
            return hosts
        if wanted not in WANTED:
            LOG.warning("%s=%r is not known here [%s]", EXTRA_SPEC, wanted,
                        SPEC)  # fmt: skip
            return self._end([], Counter({SPEC: len(hosts)}), None)
        passed, rest = self._known(hosts, wanted)
        reasons = Counter[str]()
        failure = None
        if rest:
            states, failure = self._cache_of().states([h.host for h in rest])
            now, renewed = time.monotonic(), set()
            for host in rest:
                state = states.get(host.host)
                if _good(state, wanted, now):
                    renewed.add(id(host))
                    continue
                event = _reason(state, now)
                reasons[event] += 1
                self._log(host, state, event, failure)
            if renewed:
                known = {id(host) for host in passed} | renewed
                passed = [host for host in hosts if id(host) in known]
        return self._end(passed, reasons, failure)

    def host_passes(self, host_state: Any, filter_properties: Any) -> bool:
        """Nova's per-host form, for whoever calls that."""
        self._request.index = 1
        return bool(self.filter_all([host_state], filter_properties))

    def _log(
        self,
        host: Any,
        state: State | None,
        event: str,
        failure: MHError | None,
    ) -> None:
        """One line per host and reason: INFO when it is news, else DEBUG."""
        why = (state.event if state else "") or (
            failure.event if failure else "no answer"
        )
        news = self._said.get(host.host) != (event, why)
        self._said[host.host] = (event, why)
        say = LOG.info if news else LOG.debug
        say(
            "Host %(host)s refused: level %(level)s, %(why)s [%(event)s]",
            {
                "host": host.host,
                "level": state.level if state else "unknown",
                "why": why,
                "event": event,
            },
        )

    def _end(
        self,
        passed: list[Any],
        reasons: "Counter[str]",
        failure: MHError | None,
    ) -> list[Any]:
        if not passed and reasons and not getattr(self._request, "index", 0):
            raise exception.NoValidHost(reason=_sentence(reasons, failure))
        return passed


def _good(state: State | None, wanted: str, now: float) -> bool:
    return state is not None and state.level == wanted and state.expires > now


def _reason(state: State | None, now: float) -> str:
    if state is None:
        return UNKNOWN
    if state.expires <= now:
        return STALE
    return UNKNOWN if state.level == "unknown" else UNTRUSTED


def _sentence(reasons: "Counter[str]", failure: MHError | None) -> str:
    """For the user: causes and numbers, no host's name; <= 230 characters."""
    counts = ", ".join(
        f"{number} x {event}" for event, number in reasons.most_common()
    )
    text = f"No host proves the trust that the flavor asks for: {counts}."
    if failure is not None:
        text += f" Attestation server: {failure.event}."
    return text[:230]

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
"""The filter on Nova's own HostState objects, through Nova's own handler."""

import logging
import re
import time
from typing import Any

import pytest
from nova import exception, objects
from nova.scheduler import filters as nova_filters
from nova.scheduler import host_manager

from mh_core.errors import Unavailable
from mh_scheduler.cache import TrustCache
from mh_scheduler.trusted import TrustedFilter
from tests.unit.mh_scheduler.test_cache import Server

objects.register_all()
INSTANCE = "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10"


def spec(**extra_specs: str) -> objects.RequestSpec:
    named = {name.replace("_", ":", 1): v for name, v in extra_specs.items()}
    return objects.RequestSpec(
        flavor=objects.Flavor(extra_specs=named),
        instance_uuid=INSTANCE,
        scheduler_hints={},
    )


def hosts(*names: str) -> list[host_manager.HostState]:
    return [host_manager.HostState(name, name, None) for name in names]


class Bench:
    """A filter in Nova's handler, before a server that may lie."""

    def __init__(self) -> None:
        self.server = Server()
        self.levels: dict[str, str] = {}
        cache = TrustCache(
            self._ask,
            max_ttl=30,
            max_batch=1000,
            timeout=5,
            retry_after=0,
            clock=self.clock,
        )
        self.offset = 0.0
        self.filter = TrustedFilter(cache)

    def clock(self) -> float:
        return time.monotonic() + self.offset

    def _ask(self, names: Any, timeout: float) -> Any:
        found = dict(self.server.ask(names, timeout))
        for name, level in self.levels.items():
            if name in found:
                found[name] = found[name].__class__(level, "why", 10)
        return found

    def run(
        self, request: Any, *names: str, index: int = 0
    ) -> list[str] | None:
        found = nova_filters.HostFilterHandler().get_filtered_objects(
            [self.filter], hosts(*names), request, index
        )
        return [host.host for host in found]


@pytest.fixture
def bench() -> Bench:
    return Bench()


TRUSTED = {"trust_trusted_host": "trusted"}


def test_a_flavor_without_the_extra_spec_asks_nobody(bench: Bench) -> None:
    assert bench.run(spec(), "a", "b") == ["a", "b"]
    assert bench.run(spec(hw_cpu_policy="shared"), "a") == ["a"]
    assert bench.server.questions == []


def test_only_trusted_hosts_pass(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.levels = {"b": "untrusted", "c": "boot-only", "d": "unknown"}
    bench.server.forget = {"e"}
    passed = bench.run(spec(**TRUSTED), "a", "b", "c", "d", "e")
    assert passed == ["a"]
    # whoever set up redaction in this process made one string of each record
    words = [
        re.fullmatch(r"Host (\S+) refused: .* \[(\S+)\]", record.getMessage())
        for record in caplog.records
        if record.name == "mh_scheduler.trusted"
    ]
    lines = dict(word.groups() for word in words if word)
    assert lines == {
        "b": "scheduler.filter.untrusted",
        "c": "scheduler.filter.untrusted",
        "d": "scheduler.filter.unknown",
        "e": "scheduler.filter.unknown",
    }


def test_untrusted_is_equality_too(bench: Bench) -> None:
    bench.levels = {"b": "untrusted", "c": "unknown"}
    wanted = spec(trust_trusted_host="untrusted")
    assert bench.run(wanted, "a", "b", "c") == ["b"]


@pytest.mark.parametrize("value", ["Trusted", "", "boot-only", "unknown"])
def test_another_value_passes_nobody(bench: Bench, value: str) -> None:
    bench.levels = {"b": "boot-only", "c": "unknown"}
    with pytest.raises(exception.NoValidHost, match="extra-spec"):
        bench.run(spec(trust_trusted_host=value), "a", "b", "c")


def test_the_user_learns_why(bench: Bench) -> None:
    bench.levels = {"secret-name": "untrusted"}
    with pytest.raises(exception.NoValidHost) as caught:
        bench.run(spec(**TRUSTED), "secret-name")
    message = str(caught.value)
    assert "1 x scheduler.filter.untrusted" in message
    assert "secret-name" not in message
    assert len(message) <= 255


def test_a_silent_server_passes_nobody(bench: Bench) -> None:
    bench.server.error = Unavailable("scheduler.client.silent", "down")
    with pytest.raises(exception.NoValidHost) as caught:
        bench.run(spec(**TRUSTED), "a", "b")
    assert "2 x scheduler.filter.unknown" in str(caught.value)
    assert "scheduler.client.silent" in str(caught.value)


def test_a_stale_state_is_no_state(bench: Bench) -> None:
    assert bench.run(spec(**TRUSTED), "a") == ["a"]
    bench.server.error = Unavailable("scheduler.client.silent", "down")
    assert bench.run(spec(**TRUSTED), "a") == ["a"]
    # The state's end lies 10 s ahead by the cache's clock; the filter looks
    # at its own, so let the cache's run behind.
    bench.filter._cache._states["a"] = bench.filter._cache._states[
        "a"
    ].__class__("trusted", "why", time.monotonic() - 1)
    with pytest.raises(exception.NoValidHost, match=r"filter\.stale"):
        bench.run(spec(**TRUSTED), "a")


def test_later_instances_get_an_empty_list(bench: Bench) -> None:
    """Nova frees what the first ones hold only on an empty list."""
    bench.levels = {"a": "untrusted"}
    assert bench.run(spec(**TRUSTED), "a", index=1) == []
    with pytest.raises(exception.NoValidHost):
        bench.run(spec(**TRUSTED), "a", index=0)


def test_no_host_left_by_other_filters_is_not_ours_to_explain(
    bench: Bench,
) -> None:
    assert bench.filter.filter_all([], spec(**TRUSTED)) == []


def test_it_runs_on_rebuild_and_for_every_instance(bench: Bench) -> None:
    assert bench.filter.RUN_ON_REBUILD is True
    request = spec(**TRUSTED)
    request.scheduler_hints = {"_nova_check_type": ["rebuild"]}
    bench.levels = {"a": "untrusted"}
    with pytest.raises(exception.NoValidHost):
        bench.run(request, "a")
    assert bench.filter.run_filter_for_index(5) is True


def test_per_host_form(bench: Bench) -> None:
    bench.levels = {"b": "untrusted"}
    one, two = hosts("a", "b")
    assert bench.filter.host_passes(one, spec(**TRUSTED)) is True
    assert bench.filter.host_passes(two, spec(**TRUSTED)) is False

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

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nova import exception
from nova.compute import utils as compute_utils

from mh_core.errors import Denied, MHError, Unavailable
from mh_nova.hook import faults

ERROR = Denied(
    "agent.kms.refused",
    "the key server refused: kms.release.project (another project)",
)
SHOWN = (
    "Trusted launch refused: the key server refused: kms.release.project "
    "(another project) [agent.kms.refused]"
)


def shown(fault: Exception) -> str:
    """What nova itself would write into the fault."""
    return str(compute_utils.exception_to_dict(fault)["message"])


def test_a_build_ends_with_cause_and_event() -> None:
    fault = faults.abort(ERROR)
    assert isinstance(fault, exception.BuildAbortException)
    assert shown(fault) == SHOWN


def test_a_percent_sign_is_text() -> None:
    error = Denied("hook.x", "100% of %(reason)s and %s")
    assert "100% of %(reason)s and %s [hook.x]" in shown(faults.abort(error))


def test_rollback_carries_one_of_novas() -> None:
    fault = faults.rollback(ERROR)
    assert isinstance(fault, exception.InstanceFaultRollback)
    inner = fault.inner_exception
    assert shown(inner).endswith("[agent.kms.refused]")


def test_precheck_travels_over_rpc() -> None:
    fault = faults.precheck(ERROR)
    assert type(fault).__module__ == "nova.exception"
    assert isinstance(fault, exception.MigrationPreCheckError)
    assert shown(fault).endswith("[agent.kms.refused]")


@given(
    st.text(max_size=2000),
    st.from_regex(r"hook\.[a-z.\-]{1,200}", fullmatch=True),
    st.sampled_from([faults.LAUNCH, faults.START, faults.OPERATION]),
)
def test_fits_novas_column_and_keeps_the_event(
    message: str, event: str, prefix: str
) -> None:
    line = faults.text(Denied(event, message), prefix)
    assert len(line.encode()) <= 255
    assert line.endswith(f"[{event}]")
    assert line.isascii()
    assert "\n" not in line


@given(st.text(max_size=400))
def test_every_kind_is_shown_whole(message: str) -> None:
    error = Denied("hook.refused.something-long", message)
    for fault in (
        faults.abort(error),
        faults.refusal(error),
        faults.rollback(error).inner_exception,
        faults.precheck(error),
    ):
        assert shown(fault).endswith("[hook.refused.something-long]")


def test_no_secret_is_shown() -> None:
    token = "eyJhbGciOiJFUzI1NiJ9.eyJhIjoxfQ.c2lnbmF0dXJl"
    error = Denied("hook.x", f"manifest {token} ticket={'A' * 43}")
    line = faults.text(error)
    assert "c2lnbmF0dXJl" not in line
    assert "A" * 43 not in line


@pytest.mark.parametrize("kind", [Denied, Unavailable, MHError])
def test_at_spawn(kind: type[MHError]) -> None:
    with pytest.raises(exception.BuildAbortException), faults.at_spawn():
        raise kind("hook.x", "y")


class Record:
    """An instance as far as its metadata goes."""

    uuid = "u"

    def __init__(self) -> None:
        self.metadata = {"mine": "kept"}
        self.saved = 0

    def save(self) -> None:
        self.saved += 1


def test_at_start_tells_the_tenant_where_he_looks() -> None:
    instance = Record()
    with (
        pytest.raises(exception.NovaException) as caught,
        faults.at_start(instance),
    ):
        raise Unavailable("hook.agent.unavailable", "no agent")
    said = "Trusted start refused: no agent [hook.agent.unavailable]"
    assert shown(caught.value) == said
    assert instance.metadata == {"mine": "kept", "mh_refused": said}
    faults.tell(instance, "")
    assert instance.metadata == {"mine": "kept"}
    faults.tell(instance, "")
    assert instance.saved == 2


def test_novas_own_errors_pass_unchanged() -> None:
    wrong = exception.VirtualInterfaceCreateException()
    for context in (faults.at_spawn(), faults.at_start(Record())):
        with (
            pytest.raises(exception.VirtualInterfaceCreateException) as caught,
            context,
        ):
            raise wrong
        assert caught.value is wrong

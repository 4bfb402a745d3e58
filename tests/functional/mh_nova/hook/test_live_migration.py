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
"""Live migration through the driver as nova loads it."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import libvirt
import nova.conf
import pytest
from nova import exception, objects
from nova.compute import power_state
from nova.virt import event as virt_event
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt.driver import LibvirtDriver

from mh_nova.hook import faults
from mh_nova.hook.pinned import FLAGS
from tests.functional.mh_nova.hook.conftest import (
    Stock,
    make_instance,
    message,
    migrate_data,
)
from tests.unit.mh_nova.hook.fake_agent import DESCRIBED, FakeAgent, no

CONF = nova.conf.CONF
NAME = "a" * 32 + "." + "b" * 32 + ".migration.invalid"
pytestmark = pytest.mark.usefixtures("saved", "tls")


def leave(**changes: Any) -> dict[str, Any]:
    return {
        "ok": True,
        "event": "agent.migrate.granted",
        "detail": "agent#1",
        "tls_name": NAME,
        "expires_at": int(time.time()) + 60,
        **changes,
    }


@pytest.fixture(autouse=True)
def may_leave(agent: FakeAgent) -> None:
    agent.answers["migrate-out"] = leave()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    events: list[str] = []
    monkeypatch.setattr(
        faults,
        "record",
        lambda context, instance, name, error: events.append(str(error)),
    )
    return events


def checks(driver: Any, one: Any) -> list[Callable[[], Any]]:
    return [
        lambda: driver.check_can_live_migrate_source(None, one, None),
        lambda: driver.check_can_live_migrate_destination(
            None, one, None, None
        ),
        lambda: driver.pre_live_migration(
            None, one, None, None, None, migrate_data()
        ),
    ]


CHECKS = (
    "check_can_live_migrate_source",
    "check_can_live_migrate_destination",
    "pre_live_migration",
)


def _no_tls(agent: FakeAgent) -> str:
    CONF.set_override("live_migration_with_native_tls", False, "libvirt")
    return "hook.refused.migration-tls"


def _no_certificate(agent: FakeAgent) -> str:
    agent.answers["migration"] = no("agent.migrate.certificate")
    return "agent.migrate.certificate"


def _untrusted(agent: FakeAgent) -> str:
    agent.answers["status"] = {
        "ok": True,
        "trusted": False,
        "findings": [{"event": "agent.guard.tmpfs", "message": "no"}],
        "enrolled": True,
        "version": "1",
    }
    return "agent.guard.tmpfs"


def _gone(agent: FakeAgent) -> str:
    agent.close()
    return "hook.agent.unavailable"


@pytest.mark.parametrize(
    "fault", [_no_tls, _no_certificate, _untrusted, _gone]
)
def test_refused_at_either_end_before_anything(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    fault: Callable[[FakeAgent], str],
) -> None:
    stock.replace(*CHECKS)
    event = fault(agent)
    for check in checks(driver, make_instance()):
        with pytest.raises(exception.MigrationPreCheckError) as caught:
            check()
        assert message(caught.value).endswith(f"[{event}]")
    assert stock.calls == []


def test_metadata_that_was_taken_away_keeps_it_here(
    driver: Any, agent: FakeAgent, stock: Stock, told: list[str]
) -> None:
    stock.replace(*CHECKS, "live_migration")
    agent.answers["ours"] = {
        "ok": True,
        "ours": True,
        "why": "record",
        "image": "",
        "key_id": "",
        "key_url": "",
    }
    one = make_instance(trusted=False)
    for check in checks(driver, one):
        with pytest.raises(exception.MigrationPreCheckError) as caught:
            check()
        assert message(caught.value).endswith("[hook.ours.disagree]")
    undone: list[Any] = []
    driver.live_migration(
        None,
        one,
        "node3",
        None,
        lambda *args: undone.append(args),
        True,
        migrate_data(),
    )
    assert len(undone) == 1
    assert told[0].endswith("[hook.ours.disagree]")
    assert stock.calls == []


def test_only_what_has_a_disk(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("check_can_live_migrate_source")
    disks = [{"name": "disk.swap", "size": 1, "base": False}]
    agent.answers["describe"] = {**DESCRIBED, "ok": True, "disks": disks}
    with pytest.raises(exception.MigrationPreCheckError) as caught:
        driver.check_can_live_migrate_source(None, make_instance(), None)
    assert message(caught.value).endswith("[hook.refused.migration-disks]")
    assert stock.calls == []


def test_only_with_its_disks(
    driver: Any, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock.replace("pre_live_migration")
    monkeypatch.setattr(
        LibvirtDriver,
        "check_can_live_migrate_source",
        lambda *args, **kwargs: migrate_data(block_migration=False),
    )
    one = make_instance()
    with pytest.raises(exception.MigrationPreCheckError) as caught:
        driver.check_can_live_migrate_source(None, one, None)
    assert "hook.refused.migration-shared" in message(caught.value)
    for changes in (
        {"block_migration": False},
        {"is_shared_block_storage": True},
        {"is_shared_instance_path": True},
    ):
        with pytest.raises(exception.MigrationPreCheckError) as caught:
            driver.pre_live_migration(
                None, one, None, None, None, migrate_data(**changes)
            )
        assert "hook.refused.migration-shared" in message(caught.value)
    assert stock.calls == []


def test_leases_are_handed_over_given_back_and_left(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In time: before the destination has asked for any key."""
    made = objects.LibvirtLiveMigrateData(block_migration=True)
    for name in ("destination", "source"):
        monkeypatch.setattr(
            LibvirtDriver,
            f"check_can_live_migrate_{name}",
            lambda *args, **kwargs: made,
        )
    stock.replace(
        "rollback_live_migration_at_source", "post_live_migration_at_source"
    )
    one = make_instance()
    sent = driver.check_can_live_migrate_destination(None, one, None, None)
    assert sent.target_connect_addr == CONF.host
    driver.check_can_live_migrate_source(None, one, sent)
    driver.rollback_live_migration_at_source(None, one, None)
    assert [o["destination"] for o in agent.asked("migrate-offer")] == [
        CONF.host,
        "",
    ]
    driver.post_live_migration_at_source(None, one, None)
    assert len(agent.asked("migrate-left")) == 1
    # a key server that is away keeps neither from ending
    agent.answers["migrate-offer"] = no("agent.kms.unavailable")
    agent.answers["migrate-left"] = no("agent.kms.unavailable")
    driver.rollback_live_migration_at_source(None, one, None)
    driver.post_live_migration_at_source(None, one, None)
    assert len(stock.calls) == 4
    # but none begins
    with pytest.raises(exception.MigrationPreCheckError) as caught:
        driver.check_can_live_migrate_source(None, one, sent)
    assert message(caught.value).endswith("[agent.kms.unavailable]")


def test_destination_prepares_for_a_guest_that_comes_in(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("pre_live_migration")
    seen: list[list[str]] = []
    stock.during = lambda _driver: seen.append(agent.verbs()) or "data"  # type: ignore[func-returns-value]
    one = make_instance(host="node0")
    assert (
        driver.pre_live_migration(None, one, None, None, None, migrate_data())
        == "data"
    )
    (asked,) = agent.asked("prepare")
    assert asked["purpose"] == "migrate-in"
    assert "prepare" in seen[0]
    # nothing was started, and nothing forgotten
    assert not {"start", "forget"} & set(agent.verbs())


def test_destination_that_fails_forgets(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("pre_live_migration")
    one = make_instance(host="node0")

    def fails(_driver: Any) -> Any:
        raise exception.DestinationDiskExists(path="/x")

    stock.during = fails
    with pytest.raises(exception.DestinationDiskExists):
        driver.pre_live_migration(None, one, None, None, None, migrate_data())
    assert agent.verbs()[-1] == "forget"
    agent.answers["prepare"] = no("agent.kms.origin")
    with pytest.raises(exception.MigrationPreCheckError) as caught:
        driver.pre_live_migration(None, one, None, None, None, migrate_data())
    assert message(caught.value).endswith("[agent.kms.origin]")
    assert agent.verbs()[-1] == "forget"


@pytest.mark.parametrize("trusted", [True, False])
def test_what_comes_after(
    driver: Any, agent: FakeAgent, stock: Stock, trusted: bool
) -> None:
    stock.replace(
        "post_live_migration_at_destination",
        "rollback_live_migration_at_destination",
    )
    one = make_instance(trusted=trusted)
    driver.post_live_migration_at_destination(None, one, None, True)
    driver.rollback_live_migration_at_destination(None, one, None, None)
    assert [one["ok"] for one in agent.asked("started")] == (
        [True, False] if trusted else []
    )
    assert len(agent.asked("forget")) == int(trusted)
    assert len(stock.calls) == 2


def test_destination_is_cleaned_although_nova_fails(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("rollback_live_migration_at_destination")

    def fails(_driver: Any) -> Any:
        raise exception.NovaException("no")

    stock.during = fails
    with pytest.raises(exception.NovaException):
        driver.rollback_live_migration_at_destination(
            None, make_instance(), None, None
        )
    assert agent.verbs()[-2:] == ["started", "forget"]


# -- the source's gate --------------------------------------------------------


class Domain:
    """libvirt's, as far as nova's Guest asks it to move."""

    def __init__(self) -> None:
        self.moved: list[tuple[str, dict[str, Any], int]] = []

    def UUIDString(self) -> str:  # noqa: N802
        return "u"

    def migrateToURI3(  # noqa: N802
        self, uri: str, params: dict[str, Any], flags: int
    ) -> None:
        self.moved.append((uri, params, flags))


XML = """<domain><devices>
<disk type="file" device="disk"><target dev="vda"/></disk>
<disk type="file" device="cdrom"><target dev="hda"/><readonly/></disk>
<disk type="block" device="disk"><target dev="vdb"/><serial>s</serial></disk>
</devices></domain>"""


class Moving:
    """nova's live_migration, cut down to its call of libvirt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.domain = Domain()
        self.flags = FLAGS
        self.copied = ["vda"]
        self.xml: str | None = XML

        def live_migration(
            driver: Any,
            context: Any,
            instance: Any,
            dest: str,
            post: Any,
            recover: Any,
            *rest: Any,
        ) -> None:
            guest = libvirt_guest.Guest(self.domain)
            driver._live_migration_operation(
                context, instance, dest, True, migrate_data(), guest, ["vda"]
            )
            if not self.domain.moved:
                recover(context, instance, dest, migrate_data())

        def operation(
            driver: Any,
            context: Any,
            instance: Any,
            dest: str,
            block: Any,
            migrate_data: Any,
            guest: Any,
            names: Any,
        ) -> None:
            guest.migrate(
                f"qemu+tcp://{dest}/system",
                migrate_uri=f"tcp://{dest}",
                flags=self.flags,
                migrate_disks=self.copied,
                destination_xml=self.xml,
            )

        monkeypatch.setattr(
            LibvirtDriver,
            "get_info",
            lambda *args, **words: SimpleNamespace(state=power_state.RUNNING),
        )
        monkeypatch.setattr(LibvirtDriver, "live_migration", live_migration)
        monkeypatch.setattr(
            LibvirtDriver, "_live_migration_operation", operation
        )


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> Moving:
    return Moving(monkeypatch)


def go(driver: Any, one: Any, given: Any = None) -> list[Any]:
    undone: list[Any] = []
    driver.live_migration(
        None,
        one,
        "node3",
        None,
        lambda *args: undone.append(args),
        True,
        given or migrate_data(),
    )
    return undone


def test_moves_to_the_key_that_the_agent_names(
    driver: Any, agent: FakeAgent, moving: Moving
) -> None:
    assert go(driver, make_instance()) == []
    (asked,) = agent.asked("migrate-out")
    assert asked["destination"] == "node3"
    ((uri, params, flags),) = moving.domain.moved
    assert uri == "qemu+tcp://node3/system"
    assert params[libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION] == NAME
    assert params["migrate_disks"] == ["vda"]
    assert flags == FLAGS
    # the next one asks again
    go(driver, make_instance())
    assert len(agent.asked("migrate-out")) == 2


def test_plain_guests_move_as_ever(
    driver: Any, agent: FakeAgent, moving: Moving
) -> None:
    moving.flags = libvirt.VIR_MIGRATE_LIVE
    assert go(driver, make_instance(trusted=False)) == []
    ((_, params, flags),) = moving.domain.moved
    assert libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION not in params
    assert flags == libvirt.VIR_MIGRATE_LIVE
    assert agent.asked("migrate-out") == []


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        (no("agent.migrate.refused"), "agent.migrate.refused"),
        ({"ok": True}, "hook.agent.answer"),
        (None, "hook.agent.unavailable"),
        (leave(tls_name="a b"), "hook.agent.answer"),
    ],
)
def test_no_leave_no_move(
    driver: Any,
    agent: FakeAgent,
    moving: Moving,
    told: list[str],
    answer: Any,
    event: str,
) -> None:
    agent.answers["migrate-out"] = answer
    one = make_instance()
    assert len(go(driver, one)) == 1
    assert moving.domain.moved == []
    assert told[0].endswith(f"[{event}]")


def test_no_move_without_tls_or_disks(
    driver: Any, agent: FakeAgent, moving: Moving, told: list[str]
) -> None:
    one = make_instance()
    assert len(go(driver, one, migrate_data(block_migration=False))) == 1
    assert "hook.refused.migration-shared" in told[-1]
    CONF.set_override("live_migration_with_native_tls", False, "libvirt")
    assert len(go(driver, one)) == 1
    assert "hook.refused.migration-tls" in told[-1]
    assert agent.asked("migrate-out") == []
    assert moving.domain.moved == []


@pytest.mark.parametrize(
    "flags",
    [
        *(
            FLAGS & ~bit
            for bit in (
                libvirt.VIR_MIGRATE_TLS,
                libvirt.VIR_MIGRATE_PEER2PEER,
                libvirt.VIR_MIGRATE_UNDEFINE_SOURCE,
                libvirt.VIR_MIGRATE_PERSIST_DEST,
            )
        ),
        FLAGS | libvirt.VIR_MIGRATE_TUNNELLED,
    ],
)
def test_no_call_of_libvirt_with_other_flags(
    driver: Any, moving: Moving, told: list[str], flags: int
) -> None:
    moving.flags = flags
    assert len(go(driver, make_instance())) == 1
    assert moving.domain.moved == []
    assert "hook.refused.migration-tls" in told[-1]


@pytest.mark.parametrize(
    ("copied", "xml"),
    [
        # the volume, over itself
        (["vda", "vdb"], XML),
        (["vdb"], XML),
        # the drive, which is there
        (["vda", "hda"], XML),
        (["vda"], None),
        (["vda"], XML.replace("<serial>s</serial>", "")),
        (["vda"], XML.replace("<readonly/>", "")),
    ],
)
def test_no_call_of_libvirt_that_copies_other_disks(
    driver: Any,
    moving: Moving,
    told: list[str],
    copied: list[str],
    xml: str | None,
) -> None:
    moving.copied, moving.xml = copied, xml
    assert len(go(driver, make_instance())) == 1
    assert moving.domain.moved == []
    assert "hook.refused.migration-copied" in told[-1]


def test_no_call_of_libvirt_after_the_leave_has_expired(
    driver: Any, agent: FakeAgent, moving: Moving, told: list[str]
) -> None:
    agent.answers["migrate-out"] = leave(expires_at=int(time.time()))
    assert len(go(driver, make_instance())) == 1
    assert moving.domain.moved == []
    assert "hook.refused.migration-late" in told[-1]


def test_no_call_of_libvirt_past_the_gate(driver: Any, moving: Moving) -> None:
    guest = libvirt_guest.Guest(moving.domain)
    with pytest.raises(exception.NovaException, match="migration-gate"):
        driver._live_migration_operation(
            None, make_instance(), "node3", True, migrate_data(), guest, []
        )
    assert moving.domain.moved == []


# -- its end, as nova itself finds out ----------------------------------------


class Leaving:
    """nova's own live migration, but for what libvirt does in it.

    :param state: of the domain on this host at the end; None: it has none.
    """

    def __init__(self, driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver = driver
        self.state: int | None = power_state.RUNNING
        self.error: Exception | None = None
        #: What nova's monitor sees, and how much later the call ends, s.
        self.job = libvirt.VIR_DOMAIN_JOB_NONE
        self.late = 0.0
        self.ends: list[str] = []
        self.events: list[Any] = []
        for name, found in (
            ("_live_migration_copy_disk_paths", ([], ["vda"])),
            ("_live_migration_data_gb", 1),
            ("_get_vpmems", []),
        ):
            monkeypatch.setattr(
                LibvirtDriver,
                name,
                lambda *args, found=found, **kwargs: found,
            )
        monkeypatch.setattr(
            LibvirtDriver,
            "_live_migration_operation",
            lambda *args: self.operate(),
        )
        monkeypatch.setattr(
            LibvirtDriver,
            "get_info",
            lambda *args, **words: SimpleNamespace(state=self.state),
        )
        monkeypatch.setattr(driver._host, "get_guest", self.get_guest)
        monkeypatch.setattr(driver, "emit_event", self.events.append)

    def operate(self) -> None:
        time.sleep(self.late)
        if self.error is not None:
            raise self.error

    def get_guest(self, instance: Any) -> Any:
        if self.state is None and self.ends != []:
            raise exception.InstanceNotFound(instance_id=instance.uuid)
        return self

    # of nova's guest, and of libvirt's domain

    @property
    def _domain(self) -> Any:
        return self

    def UUIDString(self) -> str:  # noqa: N802
        return "u"

    def get_job_info(self) -> Any:
        return libvirt_guest.JobInfo(type=self.job)

    def is_active(self) -> bool:
        if self.ends == []:
            self.ends.append("asked")
        if self.state is None:
            error = libvirt.libvirtError("no domain")
            error.err = (libvirt.VIR_ERR_NO_DOMAIN,)
            raise error
        return self.state == power_state.RUNNING

    def abortJob(self) -> None:  # noqa: N802
        self.ends.append("aborted")

    def __call__(self, one: Any) -> list[str]:
        self.driver.live_migration(
            None,
            one,
            "node3",
            lambda *args: self.ends.append("post"),
            lambda *args, **words: self.ends.append("recover"),
            True,
            migrate_data(migration=None),
        )
        return self.ends[1:]


@pytest.fixture
def leaving(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Leaving:
    return Leaving(driver, monkeypatch)


BROKEN = libvirt.libvirtError("the certificate has expired")


def test_one_that_moved(leaving: Leaving, told: list[str]) -> None:
    leaving.state = None
    assert leaving(make_instance()) == ["post"]
    # what libvirt could not say any more changes nothing
    leaving.ends, leaving.error = [], BROKEN
    assert leaving(make_instance()) == ["post"]
    assert told == []


def test_one_that_was_rolled_back_is_no_error(
    leaving: Leaving, told: list[str]
) -> None:
    """nova itself would leave a server that runs on in ERROR."""
    leaving.error = BROKEN
    assert leaving(make_instance()) == ["recover"]
    assert "the certificate has expired" in told[0]
    assert told[0].endswith("[hook.migration.broken-off]")
    assert leaving.events == []


def test_one_that_died_on_the_way_keeps_its_disk(
    leaving: Leaving, told: list[str]
) -> None:
    """nova itself would take a guest that is off for one that has moved."""
    leaving.error = BROKEN
    leaving.state = power_state.SHUTDOWN
    # nova has seen that it is off before libvirt has said why
    leaving.job, leaving.late = libvirt.VIR_DOMAIN_JOB_COMPLETED, 1.0
    leaving.ends.append("asked")
    assert leaving(make_instance()) == ["recover"]
    (event,) = leaving.events
    assert event.get_transition() == virt_event.EVENT_LIFECYCLE_STOPPED
    assert told[0].endswith("[hook.migration.broken-off]")


def test_a_plain_one_ends_as_ever(leaving: Leaving, told: list[str]) -> None:
    leaving.error = BROKEN
    with pytest.raises(libvirt.libvirtError):
        leaving(make_instance(trusted=False))
    assert leaving.ends[1:] == ["recover", "aborted"]
    assert told == []

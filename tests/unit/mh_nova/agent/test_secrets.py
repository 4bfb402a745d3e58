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
"""Secrets against a libvirt that is slow, or refuses, at the wrong moment."""

import os
import time
from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from mh_core.errors import Unavailable
from mh_core.secret import Secret
from mh_nova.agent.secrets import PREFIX, Libvirt, Secrets

ONE = "11111111-1111-4111-8111-111111111111"
TWO = "22222222-2222-4222-8222-222222222222"


class _Error(libvirt.libvirtError):
    def __init__(self, code: int) -> None:
        Exception.__init__(self, "libvirt")
        self.code = code

    def get_error_code(self) -> int:
        return self.code


class _Secret:
    def __init__(self, daemon: "Daemon", name: str) -> None:
        self.daemon, self.name = daemon, name

    def UUIDString(self) -> str:
        return self.name

    def usageID(self) -> str:
        return PREFIX + self.name

    def setValue(self, value: bytes, flags: int) -> None:
        self.daemon.when_set()

    def undefine(self) -> None:
        self.daemon.when_undefined(self.name)
        self.daemon.secrets.discard(self.name)


class Daemon(Libvirt):
    """libvirtd's table of secrets, with a test's hand in it."""

    def __init__(self) -> None:
        self.secrets: set[str] = set()
        self.when_set: Callable[[], None] = lambda: None
        self.when_undefined: Callable[[str], None] = lambda name: None

    def connection(self) -> Any:
        return self

    def secretDefineXML(self, xml: str, flags: int) -> _Secret:
        name = xml.partition("<uuid>")[2][:36]
        self.secrets.add(name)
        return _Secret(self, name)

    def secretLookupByUUIDString(self, name: str) -> _Secret:
        if name not in self.secrets:
            raise _Error(libvirt.VIR_ERR_NO_SECRET)
        return _Secret(self, name)

    def listAllSecrets(self, flags: int) -> list[_Secret]:
        return [_Secret(self, name) for name in sorted(self.secrets)]


def keys() -> dict[str, Secret]:
    return {ONE: Secret(os.urandom(32))}


def test_none_is_left_by_an_agent_that_ends() -> None:
    daemon = Daemon()
    secrets = Secrets(daemon, 60)
    # the end comes amid a start
    daemon.when_set = secrets.stop
    with pytest.raises(Unavailable):
        secrets.define("i", keys())
    assert not daemon.secrets
    with pytest.raises(Unavailable):
        secrets.define("i", keys())
    assert not daemon.secrets


def test_one_that_stays_does_not_keep_the_others() -> None:
    daemon = Daemon()
    daemon.secrets = {ONE, TWO}

    def refuse(name: str) -> None:
        if name == ONE:
            raise _Error(libvirt.VIR_ERR_INTERNAL_ERROR)

    daemon.when_undefined = refuse
    Secrets(daemon, 60).sweep()
    assert daemon.secrets == {ONE}


def test_defined_again_while_the_old_lease_ends() -> None:
    daemon = Daemon()
    secrets = Secrets(daemon, 1)
    secrets.define("i", keys())

    def again(name: str) -> None:
        daemon.when_undefined = lambda name: None
        secrets.define("i", keys())

    daemon.when_undefined = again
    secrets.drop("i")
    daemon.secrets.add(ONE)
    # still known, so its own lease takes it out
    secrets.start()
    deadline = time.monotonic() + 5
    while daemon.secrets and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not daemon.secrets
    secrets.stop()

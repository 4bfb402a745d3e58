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
"""The TPM of a node: what is measured at a boot, and where it is logged."""

from __future__ import annotations

import collections.abc
import os
import pathlib
import subprocess

import pytest

from mh_core.tpm import eventlog as reader
from tests.fixture.swtpm import free_port_pair
from tests.minicloud import eventlog
from tests.minicloud.process import Supervisor
from tests.minicloud.tpm import Authority, Tpm

PCRS = ",".join(map(str, range(10)))


@pytest.fixture
def tpm(tmp_path: pathlib.Path) -> collections.abc.Iterator[Tpm]:
    for name in ("pids", "log"):
        (tmp_path / name).mkdir()
    processes = Supervisor(tmp_path / "pids", tmp_path / "log", tmp_path)
    tpm = Tpm(
        "node1",
        tmp_path / "tpm",
        free_port_pair(),
        Authority(tmp_path / "ca"),
        tmp_path / "eventlog",
        processes,
        {"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    tpm.start()
    yield tpm
    tpm.stop()


def _tool(tpm: Tpm, *argv: str) -> str:
    return subprocess.run(
        argv,
        env=dict(os.environ, TPM2TOOLS_TCTI=tpm.tcti),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _values(output: str) -> dict[int, str]:
    """PCR values as tpm2-tools print them."""
    found = {}
    for line in output.splitlines():
        name, _, value = line.partition(":")
        if name.strip().isdigit():
            found[int(name)] = value.strip().removeprefix("0x").lower()
    return found


def test_the_log_is_what_was_measured(tpm: Tpm) -> None:
    measured = _values(_tool(tpm, "tpm2_pcrread", f"sha256:{PCRS}"))
    assert sorted(measured) == list(range(10))
    told = _tool(tpm, "tpm2_eventlog", str(tpm.event_log))
    assert _values(told.partition("pcrs:")[2]) == measured
    events = reader.parse(tpm.event_log.read_bytes())
    ours = {pcr: v.hex() for pcr, v in reader.replay(events).items()}
    assert ours == measured
    [line] = reader.command_lines(events)
    assert line == eventlog.command_line("node1")


def test_a_reset_brings_the_good_values_back(tpm: Tpm) -> None:
    good = _tool(tpm, "tpm2_pcrread", f"sha256:{PCRS}")
    tpm.extend(8, b"something else")
    assert _tool(tpm, "tpm2_pcrread", f"sha256:{PCRS}") != good
    before = _tool(tpm, "tpm2_readclock")
    tpm.reset()
    assert _tool(tpm, "tpm2_pcrread", f"sha256:{PCRS}") == good
    after = _tool(tpm, "tpm2_readclock")

    def count(text: str) -> int:
        [line] = [x for x in text.splitlines() if "reset_count" in x]
        return int(line.split(":")[1])

    assert count(after) == count(before) + 1
    assert "safe: yes" in after


def test_the_certificate_is_for_the_key_in_the_tpm(
    tpm: Tpm, tmp_path: pathlib.Path
) -> None:
    stored = tmp_path / "stored.der"
    _tool(tpm, "tpm2_nvread", "0x1c00002", "-o", str(stored))
    assert stored.read_bytes() == tpm.ek_certificate.read_bytes()
    pem = tmp_path / "ek.pem"
    subprocess.run(
        [
            *("openssl", "x509", "-inform", "DER"),
            *("-in", tpm.ek_certificate, "-out", pem),
        ],
        check=True,
    )
    chain = ("-CAfile", tpm.authority.root, "-untrusted")
    subprocess.run(
        [
            *("openssl", "verify", *chain, tpm.authority.certificate),
            *("-ignore_critical", pem),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def test_gone_and_back(tpm: Tpm) -> None:
    tpm.stop(clean=False)
    assert not tpm.running
    tpm.start()
    assert tpm.running

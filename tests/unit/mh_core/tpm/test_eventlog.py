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

"""Which command lines a log proves."""

import pytest

from mh_core.tpm import eventlog
from tests.unit.mh_core.tpm import vectors


def _lines(pcr: int, kind: int, data: bytes) -> tuple[str, ...]:
    log = eventlog.build([(pcr, kind, data)])
    return eventlog.command_lines(eventlog.parse(log))


@pytest.mark.parametrize(
    ("pcr", "data", "line"),
    [
        (8, b"kernel_cmdline: /vmlinuz ro", "/vmlinuz ro"),
        (8, b"kernel_cmdline: /vmlinuz ro\0", "/vmlinuz ro"),
        (8, b"kernel_cmdline: ", ""),
        (8, "kernel_cmdline: ä".encode(), "ä"),
        (12, "ro quiet\0".encode("utf-16-le"), "ro quiet"),
        (12, "ro quiet".encode("utf-16-le"), "ro quiet"),
        (12, "日本\0".encode("utf-16-le"), "日本"),
        (12, b"ro quiet", "ro quiet"),
        (12, b"ro quiets\0", "ro quiets"),
        (12, "ä b\0".encode(), "ä b"),
    ],
)
def test_line(pcr: int, data: bytes, line: str) -> None:
    assert _lines(pcr, eventlog.EV_IPL, data) == (line,)


@pytest.mark.parametrize(
    ("pcr", "kind", "data"),
    [
        (9, eventlog.EV_IPL, b"kernel_cmdline: x"),
        (8, eventlog.EV_ACTION, b"kernel_cmdline: x"),
        (8, eventlog.EV_NO_ACTION, b"kernel_cmdline: x"),
        (8, eventlog.EV_IPL, b"grub_cmd: kernel_cmdline: x"),
        (12, eventlog.EV_EVENT_TAG, b"x"),
    ],
)
def test_not_a_line(pcr: int, kind: int, data: bytes) -> None:
    assert _lines(pcr, kind, data) == ()


@pytest.mark.parametrize(
    ("pcr", "data"),
    [
        (8, b"kernel_cmdline: ro\0\0"),
        (8, b"kernel_cmdline: \xff"),
        (12, "ro\0evil\0".encode("utf-16-le")),
        (12, b"r\0\0\xd8"),
        (12, b"ro\0quiet"),
    ],
)
def test_measured_but_not_text(pcr: int, data: bytes) -> None:
    """A line that cannot be shown must not be passed over."""
    got = vectors.outcome(_lines, pcr, eventlog.EV_IPL, data)
    assert got == "core.tpm.eventlog.command-line"


def test_data_that_was_not_measured() -> None:
    log = eventlog.build_measured(
        [
            (8, eventlog.EV_IPL, b"kernel_cmdline: good", b"evil"),
            (12, eventlog.EV_IPL, b"good", b"evil"),
        ]
    )
    events = eventlog.parse(log)
    assert not any(event.authentic for event in events)
    assert eventlog.command_lines(events) == ()

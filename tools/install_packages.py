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
"""Debian packages, installed under a policy that starts no service."""

import collections.abc
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import typing

Say = collections.abc.Callable[[str], None]

POLICY = pathlib.Path("/usr/sbin/policy-rc.d")
SAVED = POLICY.with_name("policy-rc.d.mystery-hill")
OURS = "#!/bin/sh\n# mystery-hill: no service is started meanwhile\nexit 101\n"


def install(listing: pathlib.Path, log: pathlib.Path, say: Say) -> None:
    """Install the packages that are missing, if any."""
    lines = (line.strip() for line in listing.read_text().splitlines())
    wanted = [line for line in lines if line and not line.startswith("#")]
    restore_policy()  # a run that was killed may have left ours
    missing = sorted(set(wanted) - installed(wanted))
    if not missing:
        say(f"Debian packages: all {len(wanted)} installed")
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"Debian packages: installing {' '.join(missing)}; see {log}")
    begin = time.monotonic()
    with open(log, "ab") as out, no_services():
        code = apt(out, "install", *missing)
        if code:  # most often the lists are old, or not there
            code = apt(out, "update") or apt(out, "install", *missing)
    if code:
        say(tail(log))
        sys.exit(f"apt-get failed; the whole log is {log}")
    say(f"Debian packages: {time.monotonic() - begin:.0f} s")


def installed(names: list[str]) -> set[str]:
    """Those of the packages that are installed."""
    shown = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Package}\n", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = shown.stdout.splitlines()
    return {line[3:] for line in lines if line.startswith(("ii", "hi"))}


def apt(out: typing.IO[bytes], verb: str, *names: str) -> int:
    """Run apt-get without questions; its status."""
    return subprocess.call(
        [
            "apt-get",
            *("-y", "-q", "-o", "DPkg::Lock::Timeout=300"),
            *("-o", "Dpkg::Options::=--force-confold"),
            verb,
            *(["--no-install-recommends"] if names else []),
            *names,
        ],
        env=dict(os.environ, DEBIAN_FRONTEND="noninteractive"),
        stdout=out,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def no_services() -> collections.abc.Iterator[None]:
    """Refuse every start of a service; then as it was before."""
    handler = signal.signal(signal.SIGTERM, _interrupted)
    try:
        if os.path.lexists(POLICY):
            os.rename(POLICY, SAVED)
        POLICY.write_text(OURS)
        POLICY.chmod(0o755)
        yield
    finally:
        restore_policy()
        signal.signal(signal.SIGTERM, handler)


def restore_policy() -> None:
    """Put back what no_services() put aside."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if not POLICY.is_symlink() and POLICY.read_text() == OURS:
            POLICY.unlink()
    if os.path.lexists(SAVED) and not os.path.lexists(POLICY):
        os.rename(SAVED, POLICY)


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def tail(log: pathlib.Path, lines: int = 20) -> str:
    """The end of a log."""
    text = log.read_text(errors="replace").splitlines()
    return "\n".join(text[-lines:])

#!/usr/bin/env python3
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
"""Install what the demo and the tests need, and say what is missing.

Run by make with any Python 3.11 as root.  A second run finds everything in
place and takes a second.  Writes to the run folder, and through Debian's
and pip's own programs to their places; starts no service.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("Python 3.11 is needed; set PYTHON to one")

import hashlib
import os
import pathlib
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent
sys.path[:0] = [str(HERE), str(REPOSITORY)]

import install_checks  # noqa: E402
import install_packages  # noqa: E402

RUN = REPOSITORY / "run"
VENV = RUN / "venv"
EXTRAS = "client,kms,attest,compute,scheduler"
INPUTS = (
    "requirements.txt",
    "test-requirements.txt",
    "constraints.txt",
    "setup.cfg",
    "pyproject.toml",
)


def say(text: str) -> None:
    """One line of progress, at once."""
    print(text, flush=True)


def stamp() -> str:
    """What the virtual environment was made from."""
    digest = hashlib.sha256(f"{sys.version} {REPOSITORY}".encode())
    for name in INPUTS:
        digest.update((REPOSITORY / name).read_bytes())
    return digest.hexdigest()


def environment() -> None:
    """Make the virtual environment, unless it is as the files say."""
    mark = RUN / "venv.stamp"
    if mark.exists() and mark.read_text() == stamp():
        say("virtual environment: as required")
        return
    log = RUN / "log" / "pip.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    temporary = RUN / "tmp"
    temporary.mkdir(exist_ok=True)
    env = dict(os.environ, TMPDIR=str(temporary))
    env.setdefault("PBR_VERSION", "0.1.0")
    steps = []
    if not (VENV / "bin" / "pip").exists():
        steps.append([sys.executable, "-m", "venv", str(VENV)])
    command = [str(VENV / "bin" / "pip"), "install"]
    command += ["--disable-pip-version-check", "-c", "constraints.txt"]
    for name in ("requirements.txt", "test-requirements.txt"):
        command += ["-r", name]
    steps.append([*command, "-e", f".[{EXTRAS}]"])
    say(f"virtual environment: installing, some minutes; see {log}")
    begin = time.monotonic()
    mark.unlink(missing_ok=True)
    with open(log, "wb") as out:
        for step in steps:
            done = subprocess.run(
                step,
                cwd=REPOSITORY,
                env=env,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode:
                say(install_packages.tail(log))
                sys.exit(f"pip failed; the whole log is {log}")
    mark.write_text(stamp())
    say(f"virtual environment: {time.monotonic() - begin:.0f} s")


def main() -> None:
    """Checks, Debian packages, virtual environment."""
    problems = install_checks.problems(RUN, say)
    if problems:
        for problem in problems:
            say(f"  - {problem}")
        sys.exit("this machine cannot run the minicloud; see above")
    RUN.mkdir(exist_ok=True)
    install_packages.install(
        REPOSITORY / "tests" / "minicloud" / "packages.txt",
        RUN / "log" / "apt.log",
        say,
    )
    environment()


if __name__ == "__main__":
    main()

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

"""The minicloud by hand: python -m tests.minicloud start|stop|status|clean"""

from __future__ import annotations

import argparse
import pathlib
import signal
import sys
import time

from tests.minicloud import layout
from tests.minicloud.cloud import Cloud
from tests.minicloud.pids import CloudError


def _report(name: str, seconds: float) -> None:
    print(f"{seconds:6.1f} s  {name}", flush=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.minicloud")
    parser.add_argument(
        "--base", type=pathlib.Path, default=layout.default_base()
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start what does not run")
    start.add_argument(
        "--fresh", action="store_true", help="forget everything first"
    )
    start.add_argument(
        "--volumes", action="store_true", help="start Cinder, too"
    )
    commands.add_parser("stop", help="end everything, keep the state")
    commands.add_parser("status", help="list the processes")
    commands.add_parser("clean", help="stop and remove all state")
    env = commands.add_parser("env", help="print variables to source")
    env.add_argument("user", choices=("admin", "tenant", "other"))
    choice = parser.parse_args()
    cloud = Cloud(
        choice.base,
        volumes=getattr(choice, "volumes", False),
        report=_report,
    )
    signal.signal(signal.SIGTERM, _interrupt)
    begun = time.monotonic()
    try:
        if choice.command == "start":
            try:
                cloud.start(fresh=choice.fresh)
            except BaseException:
                cloud.stop()
                raise
        elif choice.command == "stop":
            cloud.report = None
            cloud.stop()
        elif choice.command == "clean":
            cloud.clean()
        elif choice.command == "env":
            for name, value in cloud.env(choice.user).items():
                print(f"export {name}={value}")
            return 0
        else:
            return _status(cloud)
    except CloudError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"{time.monotonic() - begun:6.1f} s  {choice.command}")
    return 0


def _status(cloud: Cloud) -> int:
    names = cloud.processes.names()
    for name in names:
        record = cloud.processes.record(name)
        alive = record is not None and record.alive()
        print(
            f"{'up' if alive else 'DOWN':5}"
            f"{record.pid if record else 0:8}  {name}"
        )
    return 0 if names else 3


if __name__ == "__main__":
    sys.exit(main())

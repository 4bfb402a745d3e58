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
"""Run several commands of one management tool, importing it once.

    manage.py MODULE -- db sync -- cell_v2 create_cell

Each command runs in a fork of the process that imported MODULE, which is
what takes most of the time; the first that fails ends it.
"""

import importlib
import os
import sys


def main() -> int:
    module = importlib.import_module(sys.argv[1])
    name = sys.argv[1].partition(".")[0] + "-manage"
    commands: list[list[str]] = []
    for word in sys.argv[2:]:
        if word == "--":
            commands.append([name])
        else:
            commands[-1].append(word)
    for command in commands:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            sys.argv = command
            sys.exit(module.main())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            print(*command, f"failed: {status}", sep=" ", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

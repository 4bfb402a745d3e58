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
"""mh-agent; its steps are the records of its audit log."""

from __future__ import annotations

import functools
import sys
import typing

from mh_nova.agent.journal import Journal
from mh_nova.cmd import agent
from tests.minicloud import held


def _patch() -> None:
    write = Journal.write

    @functools.wraps(write)
    def noted(
        self: Journal, event: str, *words: typing.Any, **more: typing.Any
    ) -> str:
        number = write(self, event, *words, **more)
        held.at(event)
        return number

    Journal.write = noted  # type: ignore[method-assign]


if __name__ == "__main__":
    _patch()
    sys.exit(agent.main())

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
"""Trust questions."""

from typing import Any

from mh_attest.handlers.base import Answer, Call
from mh_attest.listener import HOST_PATTERN
from mh_attest.trust import EVENT
from mh_core.errors import InputError
from mh_core.fields import Fields

#: Hosts in one question.
MAX_HOSTS = 1000


def _name(value: Any) -> str:
    return Fields({"host": value}, EVENT + ".body").text(
        "host", pattern=HOST_PATTERN
    )


def ask(call: Call) -> Answer:
    fields = Fields(call.body, EVENT + ".body")
    names = fields.list("hosts", _name, MAX_HOSTS)
    fields.end()
    if len(set(names)) != len(names):
        raise InputError(EVENT + ".body", "a host appears twice")
    return 200, {"hosts": call.board.ask(names)}

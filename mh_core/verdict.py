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
"""What a trust decision ends in: allowed or not, and every reason."""

from dataclasses import dataclass, field

from mh_core.errors import Denied, MHError


@dataclass(frozen=True)
class Event:
    """One thing a decision found: dotted id and a sentence."""

    id: str
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """``allowed`` is true only where every step said so."""

    allowed: bool
    events: tuple[Event, ...] = ()

    def __bool__(self) -> bool:
        """So that ``if verdict:`` cannot take a refusal for a yes."""
        return self.allowed

    def require(self) -> None:
        """:raises Denied: with the first event, unless allowed."""
        if not self.allowed:
            first = (
                self.events[0] if self.events else Event("core.verdict.empty")
            )
            raise Denied(first.id, first.detail or "refused")


@dataclass
class Findings:
    """Collects refusals, so that an operator sees all of them at once."""

    events: list[Event] = field(default_factory=list)

    def add(self, event: str, detail: str) -> None:
        self.events.append(Event(event, detail))

    def note(self, error: MHError) -> None:
        self.events.append(Event(error.event, error.message))

    def verdict(self) -> Verdict:
        return Verdict(not self.events, tuple(self.events))

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
"""Audit records of the key server, as its owner reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mh_client import times
from mh_core import lease

GRANTED = "kms.release.granted"
_RELEASE = "kms.release."


@dataclass(frozen=True)
class Entry:
    """One decision.

    :param host: by its AK, where the decision got that far; else what the
        cloud claimed.
    :param instance: the cloud's claim.
    :param at: seconds since the epoch, 0 where the record has none.
    :param request_digest: hex, of the key request decided about.
    :param number: place in the audit; ``after=`` continues behind it.
    """

    number: int
    time: str
    event: str
    detail: str
    host: str
    instance: str
    purpose: str
    at: int = 0
    request_digest: str = ""

    @property
    def release(self) -> bool:
        """About a key release."""
        return self.event.startswith(_RELEASE)

    @property
    def of_key(self) -> bool:
        """About a key, not about a lease whose keys are long there."""
        return self.purpose not in lease.PURPOSES

    @property
    def granted(self) -> bool:
        return self.event == GRANTED


def _text(documents: tuple[Mapping[str, Any], ...], *names: str) -> str:
    for document in documents:
        for name in names:
            value = document.get(name)
            if isinstance(value, str) and value:
                return value
    return ""


def entry(record: Mapping[str, Any]) -> Entry:
    """Read one record; members that are missing stay empty.

    Nothing is decided by it: it is shown to people.
    """
    places: list[Mapping[str, Any]] = [record]
    for name in ("record", "request", "claims"):
        for place in list(places):
            inner = place.get(name)
            if isinstance(inner, Mapping):
                places.append(inner)
    found = tuple(places)
    number = next(
        (
            place[name]
            for place in found
            for name in ("seq", "number")
            if isinstance(place.get(name), int)
        ),
        0,
    )
    moment = next(
        (
            place[name]
            for place in found
            for name in ("time", "at", "created_at")
            if name in place
        ),
        "",
    )
    moved = _text((record,), "previous_host")
    return Entry(
        number=number,
        time=times.text(moment),
        event=_text(found, "event"),
        detail=_text(found, "detail", "message")
        or (f"was on {moved} before" if moved else ""),
        host=_text(found, "host"),
        instance=_text(found, "instance"),
        purpose=_text(found, "purpose"),
        at=moment if isinstance(moment, int) else 0,
        request_digest=_text(found, "request_digest"),
    )

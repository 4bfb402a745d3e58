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
"""Host policies: the PCR values a group of hosts may have."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mh_core.encoding import canonical_json
from mh_core.errors import Denied, InputError
from mh_core.evidence import BOUND, QUOTED
from mh_core.fields import Fields

EVENT = "attest.host-policy"
ZERO = EVENT + ".zero"
NAME = r"[A-Za-z0-9._\-]{1,64}"
#: Allowed values of one PCR.
MAX_VALUES = 64
MAX_TAGS = 32


def parse_tags(value: dict[str, Any], event: str) -> dict[str, str]:
    """Tags: short names to short texts, e.g. ``geo: eu-1``.

    :raises InputError: with ``event``.
    """
    if len(value) > MAX_TAGS:
        raise InputError(event, "too many tags")
    for name in value:
        one = Fields({"name": name, "value": value[name]}, event)
        one.text("name", pattern=NAME)
        one.text("value", maximum=255)
    return dict(value)


@dataclass(frozen=True)
class HostPolicy:
    """Reference values.  Values of different PCRs combine freely.

    :param pcrs: PCR index to its allowed SHA-256 values; every PCR that
        bind keys are held to has some.
    """

    group: str
    pcrs: Mapping[int, tuple[bytes, ...]]
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = set(BOUND) - set(self.pcrs)
        if missing or set(self.pcrs) - set(QUOTED):
            raise InputError(
                EVENT + ".pcrs",
                f"values for PCRs {list(BOUND)} are needed, others out of "
                f"{list(QUOTED)} may be given",
            )
        for index, values in self.pcrs.items():
            if not 0 < len(values) <= MAX_VALUES:
                raise InputError(
                    EVENT + ".pcrs", f"PCR {index}: 1 to {MAX_VALUES} values"
                )
            for value in values:
                if len(value) != 32:
                    raise InputError(EVENT + ".pcrs", "a value is 32 bytes")
                # What a PCR holds that nothing was measured into: it would
                # admit a host that measures nothing.
                if not any(value):
                    raise Denied(ZERO, f"PCR {index}: nothing was measured")

    @classmethod
    def parse(cls, group: str, value: Any) -> "HostPolicy":
        """From the body ``{"pcrs", "tags"}``.

        :raises InputError: ``attest.host-policy``, ``….pcrs``.
        :raises Denied: ``attest.host-policy.zero``.
        """
        fields = Fields(value, EVENT)
        names = {str(index): index for index in QUOTED}
        pcrs: dict[int, tuple[bytes, ...]] = {}
        listed = fields.object("pcrs")
        for name in listed:
            if name not in names:
                raise InputError(EVENT, "pcrs: not a quoted PCR")
            pcrs[names[name]] = Fields(listed, EVENT).list(
                name, _value, MAX_VALUES
            )
        tags = parse_tags(fields.object("tags", {}), EVENT)
        fields.end()
        return cls(group, pcrs, tags)

    def document(self) -> dict[str, Any]:
        return {
            "group": self.group,
            "pcrs": {
                str(index): [value.hex() for value in self.pcrs[index]]
                for index in sorted(self.pcrs)
            },
            "tags": self.tags,
        }

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the document."""
        return hashlib.sha256(canonical_json(self.document())).hexdigest()

    def learnt(self, pcrs: Mapping[int, bytes]) -> "HostPolicy":
        """This policy with a host's values allowed as well."""
        merged = dict(self.pcrs)
        for index in merged:
            if pcrs[index] not in merged[index]:
                merged[index] = (*merged[index], pcrs[index])
        return HostPolicy(self.group, merged, self.tags)

    def mismatches(self, pcrs: Mapping[int, bytes]) -> list[int]:
        """PCRs whose value is not allowed, all of them."""
        return [
            index
            for index in sorted(self.pcrs)
            if pcrs.get(index) not in self.pcrs[index]
        ]


def learn(group: str, pcrs: Mapping[int, bytes]) -> HostPolicy:
    """A policy from one host's quoted values.

    :raises Denied: ``attest.host-policy.zero``.
    """
    return HostPolicy(group, {index: (pcrs[index],) for index in BOUND})


def _value(value: Any) -> bytes:
    return Fields({"value": value}, EVENT).hex("value", 32)

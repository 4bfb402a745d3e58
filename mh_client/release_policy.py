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
"""Release policies: what a key server lets happen with one key.

Shape: protocol reference, "Release policy".
"""

from dataclasses import dataclass, field, replace
from typing import Any

from mh_client.attest import Authority
from mh_core import jose
from mh_core.errors import InputError
from mh_core.request import PURPOSES

EVENT = "client.release-policy"
CHECKS = ("level", "project", "purpose", "manifest", "tags")
#: An ordinary life: launched, started again, moved and enlarged.
DEFAULT_PURPOSES = ("launch", "start", "migrate-in", "resize")
#: ``boot-only`` accepts hosts whose software is not measured, and better.
LEVELS = {"trusted": ("trusted",), "boot-only": ("trusted", "boot-only")}


Tags = dict[str, tuple[str, ...]]


def _values(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(map(str, value))


@dataclass(frozen=True)
class Rules:
    """The part of a policy that an owner chooses.

    :param projects: cloud projects whose instances may have the key.
    :param lease: seconds an instance may run before its host asks again;
        0 for no end.
    :param tags: name to the values the host may have; the host must have
        every tag named.
    """

    projects: tuple[str, ...]
    level: str = "trusted"
    purposes: tuple[str, ...] = DEFAULT_PURPOSES
    tickets: bool = True
    compat: bool = False
    lease: int = 0
    tags: Tags = field(default_factory=dict)

    def check(self) -> "Rules":
        """:raises InputError: ``client.release-policy``."""
        if not self.projects:
            raise InputError(EVENT, "at least one project must be named")
        if self.level not in LEVELS:
            raise InputError(EVENT, "level is trusted or boot-only")
        bad = sorted(set(self.purposes) - set(PURPOSES))
        if bad or not self.purposes:
            raise InputError(
                EVENT, "purposes are among " + ", ".join(PURPOSES)
            )
        if not 0 <= self.lease <= 1 << 31:
            raise InputError(EVENT, "lease: seconds, 0 for no end")
        return self

    def to_policy(
        self, authority: Authority, signing_key: jose.Jwk
    ) -> dict[str, Any]:
        """The whole document, with whom the tenant trusts."""
        self.check()
        return self._into(
            {
                "version": 1,
                "authorities": [authority.to_policy()],
                "enrollers": [authority.enroller_pem],
                "manifest_keys": [jose.public(signing_key)],
                "checks": list(CHECKS),
            }
        )

    def _into(self, policy: dict[str, Any]) -> dict[str, Any]:
        return {
            **policy,
            "levels": list(LEVELS[self.level]),
            "projects": list(self.projects),
            "purposes": list(self.purposes),
            "tickets": "required" if self.tickets else "none",
            "compat": self.compat,
            "lease": self.lease,
            "tags": {name: list(v) for name, v in self.tags.items()},
        }


@dataclass(frozen=True)
class Changes:
    """Changes of a policy; ``None`` leaves a member as it is."""

    add_projects: tuple[str, ...] = ()
    remove_projects: tuple[str, ...] = ()
    level: str | None = None
    purposes: tuple[str, ...] | None = None
    tickets: bool | None = None
    compat: bool | None = None
    lease: int | None = None
    tags: Tags = field(default_factory=dict)
    remove_tags: tuple[str, ...] = ()

    def apply(self, policy: dict[str, Any]) -> dict[str, Any]:
        """A changed copy; members not named here are kept.

        :raises InputError: ``client.release-policy``.
        """
        rules = _rules(policy)
        projects = [p for p in rules.projects if p not in self.remove_projects]
        projects += [p for p in self.add_projects if p not in projects]
        tags = {
            name: value
            for name, value in {**rules.tags, **self.tags}.items()
            if name not in self.remove_tags
        }
        rules = replace(rules, projects=tuple(projects), tags=tags)
        if self.level is not None:
            rules = replace(rules, level=self.level)
        if self.purposes is not None:
            rules = replace(rules, purposes=self.purposes)
        if self.tickets is not None:
            rules = replace(rules, tickets=self.tickets)
        if self.compat is not None:
            rules = replace(rules, compat=self.compat)
        if self.lease is not None:
            rules = replace(rules, lease=self.lease)
        return rules.check()._into(policy)


def _rules(policy: dict[str, Any]) -> Rules:
    try:
        levels = policy["levels"]
        return Rules(
            projects=tuple(policy["projects"]),
            level="boot-only" if "boot-only" in levels else "trusted",
            purposes=tuple(policy["purposes"]),
            # anything but the explicit opt-out means required
            tickets=policy["tickets"] != "none",
            compat=policy["compat"] is True,
            lease=int(policy["lease"]),
            tags={n: _values(v) for n, v in policy["tags"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise InputError(
            EVENT, "the key server's policy is not one this client knows"
        ) from exc

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
"""What the agent answers about live migration."""

from dataclasses import dataclass

from mh_core.fields import Fields

_EVENT = r"[a-z0-9]+(?:[.\-_][a-z0-9]+)*"


@dataclass(frozen=True)
class Leave:
    """The agent's leave to move a running guest to one host.

    :param tls_name: the connection must expect exactly this name.
    :param expires_at: seconds since the epoch.
    """

    event: str
    tls_name: str
    expires_at: int


def ready(fields: Fields) -> int:
    """When this host's certificate ends, seconds since the epoch."""
    return fields.integer("expires_at", 0, 1 << 40)


def leave(fields: Fields) -> Leave:
    """:raises InputError: ``hook.agent.answer``."""
    fields.text("detail", maximum=4096)
    return Leave(
        event=fields.text("event", pattern=_EVENT, maximum=128),
        tls_name=fields.text("tls_name", pattern=r"[a-z0-9.\-]{1,253}"),
        expires_at=fields.integer("expires_at", 0, 1 << 40),
    )


def arrived(fields: Fields) -> str:
    """The event a guest was admitted by; empty: not one of ours.

    :raises InputError: ``hook.agent.answer``.
    """
    fields.text("detail", maximum=4096)
    event = fields.text("event", pattern=rf"|{_EVENT}", maximum=128)
    if fields.boolean("ours") is not bool(event):
        raise fields.fail("event", "does not go with 'ours'")
    return event

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
"""What all commands share: our client, and errors people can act on."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from keystoneauth1 import exceptions as ksa
from osc_lib import exceptions
from osc_lib.command import command

from mh_client.client import TrustedClient
from mh_client.steps import printable
from mh_core.errors import MHError

T = TypeVar("T")


class _Trusted:
    """Mixed into osc_lib's command classes."""

    app: Any

    @property
    def trusted(self) -> TrustedClient:
        client: TrustedClient = self.app.client_manager.trusted
        return client

    def run(self, parsed_args: argparse.Namespace) -> int:
        """One sentence and the event id, instead of a traceback."""
        try:
            return int(super().run(parsed_args))  # type: ignore[misc]
        except MHError as exc:
            raise exceptions.CommandError(printable(str(exc))) from exc
        except ksa.ClientException as exc:
            text = printable(f"OpenStack: {exc}")
            raise exceptions.CommandError(text) from exc


class Command(_Trusted, command.Command):
    pass


class Lister(_Trusted, command.Lister):
    pass


class ShowOne(_Trusted, command.ShowOne):
    pass


def key_value(text: str) -> tuple[str, str]:
    """``name=value`` of an option."""
    name, found, value = text.partition("=")
    if not found or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    return name, value


def gather(
    pairs: list[tuple[str, str]],
) -> dict[str, tuple[str, ...]]:
    """Values by name; a name given twice has both."""
    out: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        out[name] = (*out.get(name, ()), value)
    return out


def number(low: int, high: int) -> Callable[[str], int]:
    """A whole number within bounds, of an option."""

    def convert(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {low} to {high}")
        return value

    convert.__name__ = "number"
    return convert


def columns(document: Mapping[str, Any]) -> tuple[tuple[str, ...], Any]:
    """What a ShowOne returns."""
    return tuple(document), tuple(map(cell, document.values()))


def cell(value: Any) -> Any:
    """One value of a table; see :func:`mh_client.steps.printable`."""
    return printable(value) if isinstance(value, str) else value

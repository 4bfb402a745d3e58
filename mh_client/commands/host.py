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
"""``openstack trusted host …``, for operators."""

import argparse
from collections.abc import Mapping
from typing import Any

from osc_lib.cli.format_columns import DictColumn, ListColumn

from mh_client import times
from mh_client.commands.base import (
    Command,
    Lister,
    ShowOne,
    cell,
    columns,
    key_value,
)
from mh_client.hosts import Enrolment, ek_fingerprint


def _shown(host: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(host)
    for name in ("enrolled_at", "appraised_at"):
        if name in out:
            out[name] = times.text(out[name])
    if isinstance(out.get("tags"), dict):
        out["tags"] = DictColumn(out["tags"])
    return out


def _policy(policy: Mapping[str, Any]) -> dict[str, Any]:
    """One row for each PCR."""
    out: dict[str, Any] = {}
    for name, value in policy.items():
        if name == "pcrs" and isinstance(value, dict):
            for pcr in sorted(value, key=lambda p: int(p)):
                out[f"pcr_{pcr}"] = ListColumn(value[pcr])
        elif isinstance(value, dict):
            out[name] = DictColumn(value)
        elif isinstance(value, list):
            out[name] = ListColumn(value)
        else:
            out[name] = value
    return out


class EnrolHost(ShowOne):
    """Enrol a host at the attestation server.

    The server calls the host's trust agent, checks the chain of its TPM's
    endorsement certificate and the fingerprint given here, and certifies
    its attestation key.
    """

    auth_required = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "host", metavar="<host>", help="Name of the host in nova"
        )
        parser.add_argument(
            "--listener",
            metavar="<url>",
            required=True,
            help="https:// URL of the host's trust agent",
        )
        parser.add_argument(
            "--listener-sha256",
            metavar="<hex>",
            help="SHA-256 of the listener's certificate (DER); without it "
            "any certificate of the server's CA for that address will do",
        )
        ek = parser.add_mutually_exclusive_group(required=True)
        ek.add_argument(
            "--ek-sha256",
            metavar="<hex>",
            help="SHA-256 of the TPM's endorsement certificate (DER), from "
            "your inventory",
        )
        ek.add_argument(
            "--ek-certificate",
            metavar="<file>",
            help="The endorsement certificate itself, PEM or DER",
        )
        parser.add_argument(
            "--group",
            metavar="<group>",
            default="default",
            help="Group whose host policy holds (default: default)",
        )
        parser.add_argument(
            "--tag",
            metavar="<name=value>",
            type=key_value,
            action="append",
            default=[],
            help="Tag that release policies can ask for (repeat for more)",
        )
        parser.add_argument(
            "--learn-policy",
            action="store_true",
            help="Take the group's host policy from what this host has "
            "booted now: only for a host you know to be good",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        args = parsed_args
        enrolment = Enrolment(
            host=args.host,
            listener=args.listener,
            ek_sha256=args.ek_sha256 or ek_fingerprint(args.ek_certificate),
            listener_sha256=args.listener_sha256,
            group=args.group,
            tags=dict(args.tag),
            learn=args.learn_policy,
        )
        return columns(_shown(self.trusted.hosts.enrol(enrolment)))


class ListHost(Lister):
    """List enrolled hosts and what the last appraisal said."""

    auth_required = False

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        names = ("host", "group", "level", "event", "appraised_at", "tags")
        rows = [_shown(host) for host in self.trusted.hosts.all()]
        heads = ("Host", "Group", "Level", "Event", "Appraised At", "Tags")
        return heads, (
            [cell(row.get(name, "")) for name in names] for row in rows
        )


class _OneHost(ShowOne):
    auth_required = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("host", metavar="<host>", help="Name of the host")
        return parser


class ShowHost(_OneHost):
    """Show one enrolled host."""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return columns(_shown(self.trusted.hosts.show(parsed_args.host)))


class DeleteHost(Command):
    """Delete a host: it is unknown from then on, and gets no key."""

    auth_required = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "host", metavar="<host>", nargs="+", help="Name of the host"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        for host in parsed_args.host:
            self.trusted.hosts.delete(host)


class LearnHostPolicy(_OneHost):
    """Learn a group's host policy from what a host has booted now.

    Only for a host you know to be good: what it shows is trusted from then
    on, on every host of the group.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "--group",
            metavar="<group>",
            help="Group to learn for (default: the host's)",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        args = parsed_args
        return columns(
            _policy(self.trusted.hosts.learn(args.host, args.group))
        )


class ShowHostPolicy(ShowOne):
    """Show the host policy of a group: the PCR values it allows."""

    auth_required = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "group",
            metavar="<group>",
            nargs="?",
            default="default",
            help="Group (default: default)",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return columns(_policy(self.trusted.hosts.policy(parsed_args.group)))

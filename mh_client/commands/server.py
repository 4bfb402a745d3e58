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
"""``openstack trusted server …``."""

import argparse
import time
from typing import Any

from mh_client.commands.base import ShowOne, columns, key_value, number
from mh_client.launch import NewServer
from mh_client.reports import CHECKS
from mh_client.servers import REFUSED, RUNNING, Finding


def _verdict(found: Finding) -> str:
    if found.trusted:
        return "trusted: verified by this client"
    if found.verified:
        return "not running; its last start was verified by this client"
    if found.judgement is not None:
        return "NOT TRUSTED: the VM report does not hold"
    if found.problem:
        return "not shown: " + found.problem
    return "not shown: there is no VM report of this server"


def _reason(found: Finding) -> str:
    """Why it does not run, where somebody said why."""
    words = []
    if found.server.fault:
        words.append(found.server.fault)
    words += found.hosts
    told = found.server.metadata.get(REFUSED, "")
    if told and found.server.status != RUNNING:
        words.append(told)
    if (
        found.server.status != RUNNING
        and found.tenure is not None
        and found.tenure.leases
        and found.tenure.ended(time.time())
    ):
        words.append("no host may run it: " + found.tenure.text(time.time()))
    if found.refusal is not None:
        last = found.refusal
        text = f"key refused for {last.purpose} at {last.time}"
        words.append(f"{text}: {last.detail} [{last.event}]")
    return "; ".join(words)


def _shown(found: Finding) -> Any:
    server = found.server
    last = found.decisions[-1] if found.decisions else None
    out: dict[str, Any] = {
        "id": server.id,
        "name": server.name,
        "status": server.status,
        "host": server.host,
        "image": server.image,
        "verdict": _verdict(found),
        "reason": _reason(found),
    }
    checks = found.judgement.checks if found.judgement else ()
    verdicts = {check.name: str(check) for check in checks}
    for name in CHECKS:
        out[f"check_{name}"] = verdicts.get(name, "not made")
    out["lease"] = found.tenure.text(time.time()) if found.tenure else ""
    out["last_key_decision"] = (
        f"{last.time} {last.purpose} {last.host} [{last.event}]"
        if last
        else ""
    )
    return columns(out)


def _waiting(parser: argparse.ArgumentParser) -> None:
    wait = parser.add_mutually_exclusive_group()
    wait.add_argument(
        "--wait",
        metavar="<seconds>",
        type=number(0, 86400),
        default=600,
        help="Time to wait for it to run (default: 600)",
    )
    wait.add_argument(
        "--no-wait",
        dest="wait",
        action="store_const",
        const=0,
        help="Ask for it, and do not follow",
    )


class CreateServer(ShowOne):
    """Start a server from a trusted image, and follow its launch.

    Each step is ticked on standard error as it happens, with the event id
    under which the responsible service recorded it.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "name", metavar="<name>", help="Name of the server"
        )
        parser.add_argument(
            "--image",
            metavar="<image>",
            required=True,
            help="Trusted image (id or name)",
        )
        parser.add_argument(
            "--flavor",
            metavar="<flavor>",
            required=True,
            help="Flavor (id or name)",
        )
        parser.add_argument(
            "--availability-zone", metavar="<zone>", help="Availability zone"
        )
        parser.add_argument(
            "--nic",
            metavar="<none|auto|network-id>",
            action="append",
            help="none (default), auto, or the id of a network (repeat for "
            "more)",
        )
        parser.add_argument(
            "--user-data",
            metavar="<file>",
            help="User-data; the image's launch policy must list it",
        )
        parser.add_argument(
            "--property",
            metavar="<name=value>",
            type=key_value,
            action="append",
            default=[],
            help="Metadata of the server (repeat for more)",
        )
        _waiting(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        args = parsed_args
        nics = args.nic or ["none"]
        plain = len(nics) == 1 and nics[0] in ("none", "auto")
        new = NewServer(
            name=args.name,
            image=args.image,
            flavor=args.flavor,
            availability_zone=args.availability_zone,
            networks=nics[0] if plain else tuple(nics),
            user_data=args.user_data,
            properties=dict(args.property),
            wait=args.wait,
        )
        return _shown(self.trusted.launch.run(new))


class ShowServer(ShowOne):
    """Verify what a server runs, or say why it does not.

    This client checks the VM report itself: signatures, the host's quote,
    and that it speaks of this server, your image, manifest and key server.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "server", metavar="<server>", help="Server (id or name)"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return _shown(self.trusted.servers.show(parsed_args.server))


class RebuildServer(ShowOne):
    """Make a server's disk anew from a trusted image, and follow that.

    What was on its disk is lost. The ticket that the key server wants for
    a launch is got and passed on by this command.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "server", metavar="<server>", help="Server (id or name)"
        )
        parser.add_argument(
            "--image",
            metavar="<image>",
            required=True,
            help="Trusted image (id or name)",
        )
        _waiting(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        args = parsed_args
        return _shown(
            self.trusted.launch.rebuild(args.server, args.image, args.wait)
        )


class RescueServer(ShowOne):
    """Boot a server from a rescue disk, its own disk beside it.

    The release policies of both keys must list the purpose ``rescue``. For
    an image of another key the ticket is got and passed on by this command.
    For the way back: ``openstack server unrescue``.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "server", metavar="<server>", help="Server (id or name)"
        )
        parser.add_argument(
            "--image",
            metavar="<image>",
            help="Trusted image to boot from (id or name; default: the "
            "server's own)",
        )
        _waiting(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        args = parsed_args
        server = self.trusted.rescue.run(args.server, args.image, args.wait)
        return columns(
            {"id": server.id, "name": server.name, "status": server.status}
        )


class RevokeServer(ShowOne):
    """Let no host run a server any longer.

    Its keys go to no host from now on. A host that runs it stops it when
    its lease ends, if the release policy of the key sets one; without a
    lease it runs until it is stopped.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "server",
            metavar="<server>",
            help="Server (id or name; its id where nova no longer shows it)",
        )
        parser.add_argument(
            "--key",
            metavar="<key-id>",
            help="Id of its key, where its image is gone",
        )
        parser.add_argument(
            "--undo",
            action="store_true",
            help="Allow it again; it must be started anew",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        args = parsed_args
        tenure = self.trusted.servers.revoke(
            args.server, args.key, not args.undo
        )
        return columns(
            {
                "id": tenure.instance,
                "revoked": tenure.revoked,
                "lease": tenure.text(time.time()),
            }
        )

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
"""``openstack trusted key …``, for tenants."""

import argparse
import sys
from typing import Any

from osc_lib import exceptions
from osc_lib.cli.format_columns import DictColumn, ListColumn

from mh_client import times
from mh_client.audit import entry
from mh_client.commands.base import (
    Command,
    Lister,
    ShowOne,
    cell,
    columns,
    gather,
    key_value,
    number,
)
from mh_client.kms import Key
from mh_client.release_policy import (
    DEFAULT_PURPOSES,
    LEVELS,
    Changes,
    Rules,
)
from mh_core.request import PURPOSES


def _shown(key: Key) -> Any:
    policy = key.policy
    authorities = [str(a.get("issuer")) for a in policy["authorities"]]
    return columns(
        {
            "id": key.id,
            "name": key.name,
            "project": key.project,
            "created_at": times.text(key.created_at),
            "url": key.url,
            "compat_url": key.compat_url,
            "authorities": ListColumn(authorities),
            "levels": ListColumn(policy["levels"]),
            "projects": ListColumn(policy["projects"]),
            "purposes": ListColumn(policy["purposes"]),
            "tickets": policy["tickets"],
            "compat": policy["compat"],
            "lease": policy["lease"],
            "tags": DictColumn(policy["tags"]),
            "checks": ListColumn(policy["checks"]),
            "manifests": ListColumn(list(key.manifests)),
        }
    )


def _rules(parser: argparse.ArgumentParser, unset: bool) -> None:
    """Options that create and set have in common.

    :param unset: an option that is not given changes nothing.
    """
    parser.add_argument(
        "--level",
        choices=tuple(LEVELS),
        default=None if unset else "trusted",
        help="Hosts that may have the key: trusted (default), or boot-only "
        "for hosts too whose software is not measured",
    )
    parser.add_argument(
        "--purpose",
        choices=PURPOSES,
        action="append",
        help="What the key may be asked for (repeat for more; default: "
        + ", ".join(DEFAULT_PURPOSES)
        + ")",
    )
    tickets = parser.add_mutually_exclusive_group()
    tickets.add_argument(
        "--no-ticket",
        dest="tickets",
        action="store_false",
        default=None if unset else True,
        help="Servers may start without a launch ticket of yours: whoever "
        "controls the cloud can start the image as often as they like",
    )
    tickets.add_argument(
        "--ticket",
        dest="tickets",
        action="store_true",
        help="Every new server needs a launch ticket (default)",
    )
    compat = parser.add_mutually_exclusive_group()
    compat.add_argument(
        "--compat",
        action="store_true",
        default=None if unset else False,
        help="Allow the bare-AK request of older hosts as well",
    )
    compat.add_argument(
        "--no-compat",
        dest="compat",
        action="store_false",
        help="Refuse the bare-AK request (default)",
    )
    parser.add_argument(
        "--lease",
        metavar="<seconds>",
        type=number(0, 1 << 31),
        default=None if unset else 0,
        help="Time a server may run before its host must ask again; 0 for "
        "no end (default)",
    )
    parser.add_argument(
        "--tag",
        metavar="<name=value>",
        type=key_value,
        action="append",
        default=[],
        help="Tag a host must have (repeat for more; the same name again "
        "allows either value)",
    )


class CreateKey(ShowOne):
    """Make a key here and give it to your key server.

    The key is wrapped to the key server's pinned transport key, and is
    written nowhere on this machine.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("name", metavar="<name>", help="Name of the key")
        parser.add_argument(
            "--project",
            metavar="<project-id>",
            action="append",
            help="Project whose servers may have the key (repeat for more; "
            "default: the project you are logged in to)",
        )
        _rules(parser, unset=False)
        return parser

    def _own_project(self) -> str:
        """:raises CommandError: not logged in to a project."""
        access = self.app.client_manager.auth_ref
        project = getattr(access, "project_id", None)
        if not project:
            raise exceptions.CommandError(
                "you are not logged in to a project; name it with --project"
            )
        return str(project)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        args = parsed_args
        projects = args.project or [self._own_project()]
        rules = Rules(
            projects=tuple(projects),
            level=args.level,
            purposes=tuple(args.purpose or DEFAULT_PURPOSES),
            tickets=args.tickets,
            compat=args.compat,
            lease=args.lease,
            tags=gather(args.tag),
        )
        return _shown(self.trusted.keys.create(args.name, rules))


class ListKey(Lister):
    """List your keys."""

    auth_required = False

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        heads = ("ID", "Name", "Projects", "Levels", "Tickets", "Images")
        return heads, (
            (
                key.id,
                cell(key.name),
                ListColumn(key.policy["projects"]),
                ListColumn(key.policy["levels"]),
                key.policy["tickets"],
                len(key.manifests),
            )
            for key in self.trusted.keys.all()
        )


class _OneKey(ShowOne):
    auth_required = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("key", metavar="<key>", help="Key (id or name)")
        return parser


class ShowKey(_OneKey):
    """Show a key and its release policy; never the key itself."""

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return _shown(self.trusted.keys.find(parsed_args.key))


class SetKey(_OneKey):
    """Change the release policy of a key."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        for verb in ("add", "remove"):
            parser.add_argument(
                f"--{verb}-project",
                metavar="<project-id>",
                action="append",
                default=[],
                help=f"{verb.capitalize()} a project (repeat for more)",
            )
        _rules(parser, unset=True)
        parser.add_argument(
            "--remove-tag",
            metavar="<name>",
            action="append",
            default=[],
            help="No longer ask for this tag (repeat for more)",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        args = parsed_args
        changes = Changes(
            add_projects=tuple(args.add_project),
            remove_projects=tuple(args.remove_project),
            level=args.level,
            purposes=tuple(args.purpose) if args.purpose else None,
            tickets=args.tickets,
            compat=args.compat,
            lease=args.lease,
            tags=gather(args.tag),
            remove_tags=tuple(args.remove_tag),
        )
        return _shown(self.trusted.keys.change(args.key, changes))


def _confirm(names: list[str]) -> None:
    """:raises CommandError: unless somebody says yes."""
    words = ", ".join(names)
    if sys.stdin.isatty():
        sys.stderr.write(
            f"This destroys {words} and every disk encrypted under it, for "
            "good. Type 'yes' to go on: "
        )
        sys.stderr.flush()
        if sys.stdin.readline().strip() == "yes":
            return
    raise exceptions.CommandError(
        f"nothing deleted; give --yes to destroy {words} and every disk "
        "encrypted under it"
    )


class DeleteKey(Command):
    """Destroy a key, and with it every image and disk under it."""

    auth_required = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "key", metavar="<key>", nargs="+", help="Key (id or name)"
        )
        parser.add_argument(
            "--yes", action="store_true", help="Do not ask first"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        if not parsed_args.yes:
            _confirm(parsed_args.key)
        for name in parsed_args.key:
            self.trusted.keys.delete(name)


class ListKeyAudit(Lister):
    """List what your key server decided about a key.

    The instance is what the cloud claimed; event and, for a host that got
    as far as proving itself, the host are the key server's own findings.
    """

    auth_required = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("key", metavar="<key>", help="Key (id or name)")
        parser.add_argument(
            "--after",
            metavar="<number>",
            type=number(0, 1 << 62),
            default=0,
            help="Only records after this number",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        args = parsed_args
        heads = (
            "Number", "Time", "Event", "Host", "Instance", "Purpose",
            "Detail",
        )  # fmt: skip
        rows = map(entry, self.trusted.keys.audit(args.key, args.after))
        return heads, (
            (r.number, r.time, r.event, r.host, r.instance, r.purpose,
             r.detail)
            for r in rows
        )  # fmt: skip

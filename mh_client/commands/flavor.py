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
"""``openstack trusted flavor create``, for operators."""

import argparse
from typing import Any

from osc_lib.cli.format_columns import DictColumn

from mh_client.commands.base import ShowOne, columns, number


class CreateFlavor(ShowOne):
    """Create a flavor whose servers go to trusted hosts only."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "name", metavar="<name>", help="Name of the flavor"
        )
        for option, unit, default in (
            ("ram", "MiB", 256),
            ("vcpus", "number", 1),
            ("disk", "GiB", 0),
        ):
            parser.add_argument(
                f"--{option}",
                metavar=f"<{unit}>",
                type=number(0, 1 << 31),
                default=default,
                help=f"{option.capitalize()}, {unit} (default: {default})",
            )
        parser.add_argument(
            "--id", metavar="<id>", default="", help="Id (default: a UUID)"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        args = parsed_args
        flavor = self.trusted.flavors.create(
            args.name, args.ram, args.vcpus, args.disk, args.id
        )
        names = ("id", "name", "ram", "vcpus", "disk")
        specs = DictColumn(flavor["extra_specs"])
        shown = {name: flavor.get(name) for name in names}
        return columns({**shown, "extra_specs": specs})

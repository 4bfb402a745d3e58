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
"""``openstack trusted``: what there is, in the order it is used."""

import argparse

from mh_client.commands.base import Command

TEXT = """\
Trusted virtual machines: encrypted images that start only on hosts whose TPM
proves what they booted.

A tenant, once:
  openstack trusted key create NAME          make a key, give it to your
                                             key server
  openstack trusted image create NAME --file FILE --key KEY
                                             encrypt, sign, upload
and for each server:
  openstack trusted server create NAME --image IMAGE --flavor FLAVOR
                                             start it, and follow the launch
  openstack trusted server show SERVER       verify what runs, or why not
Later:
  openstack trusted key list | show | set | delete
  openstack trusted key audit list KEY       who was given the key, and who not
  openstack trusted image show IMAGE         hold an image against its manifest

An operator:
  openstack trusted host enrol HOST --listener URL --ek-sha256 HEX
  openstack trusted host list | show | delete
  openstack trusted host policy learn | show
  openstack trusted flavor create NAME --ram MB --vcpus N --disk GB

Configuration: --os-trusted-config FILE, OS_TRUSTED_CONFIG, or
~/.config/mystery-hill/client.toml.  'openstack help trusted key create' and
so on say more about each command.
"""


class Overview(Command):
    """Show what the trusted commands do, and in which order."""

    auth_required = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.description = TEXT
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.app.stdout.write(TEXT)

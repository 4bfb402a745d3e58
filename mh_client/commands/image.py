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
"""``openstack trusted image …``."""

import argparse
from typing import Any

from osc_lib.cli.format_columns import ListColumn

from mh_client.commands.base import ShowOne, columns
from mh_client.config_drive import config_drives
from mh_client.images import NewImage, TrustedImage, file_digest
from mh_core.launch_policy import LaunchPolicy
from mh_glance import measure
from mh_glance.inspect import DRIVERS, FORMS


def _shown(image: TrustedImage) -> Any:
    manifest = image.manifest
    policy = manifest.launch_policy
    made = image.provenance
    signer = "your key" if made is None else "an attested host"
    chain = {} if made is None else {"snapshot": ListColumn(made.lines())}
    return columns(
        {
            "id": image.id,
            "name": image.document.get("name", ""),
            "status": image.document.get("status", ""),
            "visibility": image.document.get("visibility", ""),
            "key_id": manifest.key_id,
            "key_url": image.properties.key_url,
            "manifest_digest": image.digest,
            "format": manifest.format,
            "container": "ova" if manifest.container else "bare",
            "manifest": f"verified: signed by {signer}, and of this image",
            **chain,
            "size": manifest.size,
            "virtual_size": manifest.virtual_size,
            "sha256": manifest.sha256,
            "measured": manifest.measure,
            "modules": ListColumn(sorted(manifest.modules)),
            "allows_snapshots": policy.snapshots,
            "allowed_config_drives": ListColumn(list(policy.config_drives)),
            "allowed_user_data": ListColumn(list(policy.user_data)),
        }
    )


class CreateImage(ShowOne):
    """Encrypt a disk image, sign its manifest, and upload it.

    Only ciphertext is written: the key comes wrapped from your key server
    and stays in memory.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument("name", metavar="<name>", help="Name of the image")
        parser.add_argument(
            "--file",
            metavar="<file>",
            required=True,
            help="Plain disk image: " + ", ".join(DRIVERS) + ", or a plain "
            "OVA with one disk",
        )
        parser.add_argument(
            "--file-format",
            choices=FORMS,
            help="Its format (default: what its content says; luks: a raw "
            "LUKS1 image whose passphrase is this key in hexadecimal, "
            "uploaded as it is)",
        )
        parser.add_argument(
            "--disk-format",
            choices=("qcow2", "raw"),
            default="qcow2",
            help="Encrypted disk: qcow2 with LUKS inside (default), or raw "
            "LUKS1, which hides the allocation but is never sparse",
        )
        parser.add_argument(
            "--container-format",
            choices=("bare", "ova"),
            default="bare",
            help="Upload the disk as it is (default), or in an OVA whose "
            "envelope marks it as encrypted",
        )
        parser.add_argument(
            "--key", metavar="<key>", required=True, help="Key (id or name)"
        )
        parser.add_argument(
            "--compat",
            action="store_true",
            help="Hosts use the bare-AK request; the key must allow it",
        )
        parser.add_argument(
            "--measure",
            metavar="<what>",
            default="ciphertext",
            help="What hosts measure before each start, beside the "
            f"ciphertext as a whole: {measure.FORMS}. boot: boot loader, "
            "kernel, initrd and their configuration (default: ciphertext)",
        )
        visibility = parser.add_mutually_exclusive_group()
        for name in ("private", "shared"):
            visibility.add_argument(
                f"--{name}",
                dest="visibility",
                action="store_const",
                const=name,
                default="private",
                help=f"Image is {name}"
                + (" (default)" if name == "private" else ""),
            )
        parser.add_argument(
            "--allow-snapshots",
            action="store_true",
            help="Servers may be snapshotted, under a new key",
        )
        parser.add_argument(
            "--user-data",
            metavar="<file>",
            action="append",
            default=[],
            help="User-data that servers may be given (repeat for more; "
            "default: none may)",
        )
        parser.add_argument(
            "--config-drive",
            choices=("none", "pinned", "any"),
            default="none",
            help="Config drives that may be attached: none (default); those "
            "with one of the given user-data and SSH keys, or without, and "
            "nothing else that a guest obeys; any that the cloud writes",
        )
        parser.add_argument(
            "--ssh-key",
            metavar="<file>",
            action="append",
            default=[],
            help="Public key that a pinned config drive may hold (repeat "
            "for more)",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        args = parsed_args
        policy = LaunchPolicy(
            config_drives=config_drives(
                args.config_drive, args.user_data, args.ssh_key
            ),
            user_data=tuple(map(file_digest, args.user_data)),
            snapshots=args.allow_snapshots,
        )
        new = NewImage(
            name=args.name,
            file=args.file,
            key=args.key,
            form=args.file_format,
            compat=args.compat,
            kind="luks" if args.disk_format == "raw" else "qcow2",
            ova=args.container_format == "ova",
            visibility=args.visibility,
            launch_policy=policy,
            question=measure.parse(args.measure),
        )
        return _shown(self.trusted.images.create(new))


class ShowImage(ShowOne):
    """Hold an image against its manifest and your signing key."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = super().get_parser(prog_name)
        parser.add_argument(
            "image", metavar="<image>", help="Image (id or name)"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return _shown(self.trusted.images.show(parsed_args.image))

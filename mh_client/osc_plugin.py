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
"""Plug-in of the OpenStack client: ``openstack trusted …``."""

import argparse
import logging
from typing import Any

from osc_lib import utils

from mh_client.client import TrustedClient
from mh_client.config import DEFAULT
from mh_core.secret import protect

API_NAME = "trusted"
API_VERSION_OPTION = "os_trusted_api_version"
API_VERSIONS = ("1",)
DEFAULT_API_VERSION = "1"


def make_client(instance: Any) -> TrustedClient:
    """One for each run; connects to nothing by itself."""
    # --debug prints request bodies, and a ticket stands in one of them
    for handler in logging.getLogger().handlers:
        protect(handler)
    options = instance.get_configuration()
    return TrustedClient(
        options.get("trusted_config") or None,
        lambda: instance.sdk_connection.image,
        lambda: instance.sdk_connection.compute,
    )


def build_option_parser(
    parser: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """Hook to add global options."""
    parser.add_argument(
        "--os-trusted-api-version",
        metavar="<trusted-api-version>",
        default=utils.env("OS_TRUSTED_API_VERSION"),
        help="Version of the trusted commands, default=1 "
        "(Env: OS_TRUSTED_API_VERSION)",
    )
    parser.add_argument(
        "--os-trusted-config",
        metavar="<file>",
        default=utils.env("OS_TRUSTED_CONFIG"),
        help="Configuration of the trusted commands: key server, "
        f"attestation server and what is pinned, default={DEFAULT} "
        "(Env: OS_TRUSTED_CONFIG)",
    )
    return parser

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
"""``mh-attest-serve``: the stand-alone server, TLS by granian."""

import argparse
import os
import pathlib
import sys

from granian import Granian
from granian.constants import Interfaces

from mh_attest import conf as conf_module


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; 0 then, 1 for a bad configuration."""
    parser = argparse.ArgumentParser(
        prog="mh-attest-serve", description="Serve the attestation server."
    )
    parser.add_argument(
        "--config-file", required=True, help="the configuration file"
    )
    options = parser.parse_args(argv)
    path = str(pathlib.Path(options.config_file).resolve())
    conf = conf_module.load([path])
    if not (conf.api.certificate_file and conf.api.key_file):
        print(
            "[api] certificate_file and key_file are needed", file=sys.stderr
        )
        return 1
    # The worker is a process of its own; this is how it learns the file.
    os.environ[conf_module.CONFIG_FILE_ENV] = path
    Granian(
        "mh_attest.wsgi.api:application",
        address=conf.api.bind_host,
        port=conf.api.bind_port,
        interface=Interfaces.WSGI,
        # One: SQLite has one writer, and the audit chain one head.
        workers=1,
        blocking_threads=conf.api.threads,
        websockets=False,
        log_access=False,
        ssl_cert=pathlib.Path(conf.api.certificate_file),
        ssl_key=pathlib.Path(conf.api.key_file),
        workers_kill_timeout=10,
        process_name="mh-attest",
    ).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())

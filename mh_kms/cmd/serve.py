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

"""mh-kms-serve: the key server as a TLS server of its own."""

import argparse
import ctypes
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from oslo_config import cfg

from mh_core.errors import MHError
from mh_kms import conf as conf_module
from mh_kms.deploy import build
from mh_kms.wsgi.api import VARIABLE, prepare

_PR_SET_PDEATHSIG = 1
#: Seconds that requests under way have to finish after SIGTERM.
_GRACE = 10


def load() -> Any:
    """Runs in the worker: the application, and an end with the parent."""
    parent = multiprocessing.parent_process()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent.pid:
        raise SystemExit("the parent is gone")
    return prepare()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="mh-kms-serve", description="Serve the key server over TLS."
    )
    parser.add_argument(
        "--config-file", required=True, help="the server's configuration"
    )
    options = parser.parse_args(argv)
    try:
        conf = conf_module.load(options.config_file)
        # Fail here, with a message, and not in a worker.
        build(conf)
        certificate = _readable(conf.server.certificate_file)
        key = _readable(conf.server.key_file)
    except (MHError, cfg.Error, OSError) as exc:
        print(f"mh-kms-serve: {exc}", file=sys.stderr)
        return 1
    os.environ[VARIABLE] = os.path.abspath(options.config_file)
    try:
        server = Granian(
            "mh_kms.cmd.serve:load",
            factory=True,
            address=conf.server.bind_host,
            port=conf.server.bind_port,
            interface=Interfaces.WSGI,
            workers=1,
            blocking_threads=conf.server.threads,
            http=HTTPModes.http1,
            websockets=False,
            ssl_cert=certificate,
            ssl_key=key,
            log_level=LogLevels.error,
            workers_kill_timeout=_GRACE,
        )
        server.serve()
    except (RuntimeError, OSError) as exc:
        # Address in use, or no usable certificate; the rest is a stack.
        first = str(exc).split("\n", 1)[0]
        print(f"mh-kms-serve: cannot serve: {first}", file=sys.stderr)
        return 1
    return 0


def _readable(name: str) -> Path:
    with open(name, "rb"):
        return Path(name)


if __name__ == "__main__":
    sys.exit(main())

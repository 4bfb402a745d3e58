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

"""``mh_kms.wsgi.api:application``, for any WSGI server.

The environment variable ``OS_MH_KMS_CONFIG_FILE`` names the configuration.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from oslo_log import log

from mh_core.secret import protect
from mh_kms import conf as conf_module
from mh_kms.deploy import deploy

VARIABLE = "OS_MH_KMS_CONFIG_FILE"

_lock = threading.Lock()
_app: Any = None


def prepare() -> Any:
    """Build the application, once.

    :raises RuntimeError: the variable is not set.
    :raises MHError, oslo_config.cfg.Error: it cannot work.
    """
    global _app
    with _lock:
        if _app is None:
            path = os.environ.get(VARIABLE)
            if not path:
                raise RuntimeError(f"{VARIABLE} is not set")
            conf = conf_module.load(path)
            setup_logging(conf)
            _app = deploy(conf)
    return _app


def setup_logging(conf: Any) -> None:
    """oslo.log, with redaction in front of every handler."""
    log.set_defaults(
        default_log_levels=[
            *log.get_default_log_levels(),
            "alembic=WARN",
            "oslo_policy=WARN",
        ]
    )
    log.setup(conf, "mh-kms")
    logging.captureWarnings(True)
    for one in logging.getLogger().handlers:
        protect(one)


def application(
    environ: dict[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    return (_app or prepare())(environ, start_response)  # type: ignore[no-any-return]


# A server that imports this with a configuration fails at once if it is bad.
if os.environ.get(VARIABLE):
    prepare()

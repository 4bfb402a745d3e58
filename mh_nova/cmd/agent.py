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
"""``mh-agent``: the daemon that holds keys on a compute host.

Runs as root.  It leaves no core file, is not traced, and its memory is not
swapped where the host allows that.
"""

import ctypes
import logging
import resource
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from oslo_config import cfg
from oslo_log import log

from mh_core.errors import MHError
from mh_core.secret import protect
from mh_nova.agent import conf as agent_conf
from mh_nova.agent.listener import Listener, ListenerOptions
from mh_nova.agent.prover import Prover
from mh_nova.agent.service import Service, host_id
from mh_nova.agent.store import Store
from mh_nova.agent.tpm import Tpm
from mh_nova.cmd import stream

LOG = logging.getLogger(__name__)
_PR_SET_DUMPABLE = 4
_MCL_CURRENT_AND_FUTURE = 3


def harden() -> None:
    """No core file, no ptrace by others, memory locked if possible."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
    # threads' stacks are locked too: keep them small
    threading.stack_size(512 * 1024)
    if libc.mlockall(_MCL_CURRENT_AND_FUTURE):
        LOG.warning(
            "agent.mlock: memory is not locked; the host should have no "
            "swap, or encrypted swap"
        )


def _listener(
    conf: Any, store: Store, prover: Prover, service: Service
) -> Listener | None:
    options = conf.listener
    if not options.enabled:
        return None
    return Listener(
        ListenerOptions(
            host=conf.agent.host,
            host_id=host_id(conf, store),
            address=(options.bind_host, options.bind_port),
            certificate_file=options.cert_file,
            key_file=options.key_file,
            ca_file=options.client_ca_file,
            client_sha256=options.client_sha256,
            timeout=float(options.timeout),
        ),
        prover,
        service.pending.find,
        service.migration,
    )


def main(argv: list[str] | None = None) -> int:
    """Console script; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["stream"]:
        return stream.main(words[1:])
    conf = cfg.ConfigOpts()
    log.register_options(conf)
    agent_conf.register_opts(conf)
    conf(
        words,
        project="mh-agent",
        prog="mh-agent",
    )
    log.setup(conf, "mh-agent")
    for handler in logging.getLogger().handlers:
        protect(handler)
    harden()
    try:
        store = Store(Path(conf.agent.state_dir))
        prover = Prover(
            Tpm(conf.agent.tcti, str(store.root / "tpm.lock")),
            conf.agent.state_dir,
            conf.agent.event_log,
        )
        service = Service(conf, prover, store)
        listener = _listener(conf, store, prover, service)
    except (MHError, OSError, ValueError) as exc:
        LOG.critical("agent.start.failed: %s", exc)
        return 1

    def ended(_signum: int, _frame: FrameType | None) -> None:
        # not in the handler itself: it runs amid whatever is going on
        threading.Thread(target=service.stop, name="stop").start()

    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGINT, ended)
    if listener is not None:
        listener.start()
    LOG.info("agent.ready: socket %s", conf.agent.socket)
    service.run()
    if listener is not None:
        listener.stop()
    LOG.info("agent.stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())

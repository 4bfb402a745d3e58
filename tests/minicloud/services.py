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

"""The processes of the controller: database, message bus and web services.

Each function starts one of them through the supervisor and returns when it
answers.  Everything listens on 127.0.0.1 or on a Unix socket only.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import sys
import urllib.error
import urllib.request

import amqp

from tests.minicloud import layout
from tests.minicloud.layout import ADDRESS, PORTS
from tests.minicloud.process import Supervisor

WSGI = {
    "keystone": "keystone.wsgi.api:application",
    "glance": "glance.wsgi.api:application",
    "placement": "placement.wsgi.api:application",
    "nova": "nova.wsgi.osapi_compute:application",
    "cinder": "cinder.wsgi.api:application",
}

HERE = pathlib.Path(__file__).resolve().parent

DATABASES = (
    "keystone",
    "glance",
    "placement",
    "nova_api",
    "nova_cell0",
    "nova_cell1",
)


class Controller:
    """Starts what the compute hosts need."""

    def __init__(self, where: layout.Layout, processes: Supervisor) -> None:
        self.where = where
        self.processes = processes

    def environment(self) -> dict[str, str]:
        """The whole environment of every process of the cloud."""
        return {
            "PATH": f"{self.where.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.where.home),
            "TMPDIR": str(self.where.tmp),
            "LANG": "C.UTF-8",
            "PYTHONWARNINGS": "ignore",
            "PYTHONDONTWRITEBYTECODE": "1",
            "no_proxy": "127.0.0.1",
            # Nova's own threads, also in nova-manage.
            "OS_NOVA_DISABLE_EVENTLET_PATCHING": "true",
            "OS_KEYSTONE_CONFIG_DIR": str(self.where.etc),
            "OS_GLANCE_CONFIG_DIR": str(self.where.etc),
            "OS_PLACEMENT_CONFIG_DIR": str(self.where.etc),
            "OS_NOVA_CONFIG_DIR": str(self.where.etc),
        }

    def run(self, argv: list[str], log: str, stdin: bytes = b"") -> None:
        """Run a command to its end; its output goes to a log."""
        self.processes.command(log, argv, self.environment(), stdin)

    def mariadb(self) -> None:
        data = self.where.state / "mysql"
        if not (data / "installed").exists():
            shutil.rmtree(data, ignore_errors=True)
            data.mkdir(parents=True)
            self.run(
                [
                    "mariadb-install-db",
                    "--no-defaults",
                    f"--datadir={data}",
                    "--skip-test-db",
                    "--user=root",
                    "--auth-root-authentication-method=normal",
                    "--skip-name-resolve",
                ],
                "mariadb-install",
            )
            (data / "installed").touch()
        self.processes.start(
            "mariadb",
            [
                "/usr/sbin/mariadbd",
                "--no-defaults",
                "--user=root",
                f"--datadir={data}",
                f"--socket={self.where.mysql_socket}",
                f"--pid-file={self.where.base}/mariadb.pid",
                f"--tmpdir={self.where.tmp}",
                "--skip-networking",
                "--innodb-buffer-pool-size=64M",
                "--innodb-log-file-size=16M",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-doublewrite=0",
                "--performance-schema=OFF",
                "--max-connections=300",
                "--skip-log-bin",
                "--character-set-server=utf8mb3",
            ],
            env=self.environment(),
            ready=self._mariadb_answers,
        )

    def _mariadb_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(self.where.mysql_socket))
                return bool(sock.recv(1))
            except OSError:
                return False

    def sql(self, text: str) -> None:
        self.run(
            [
                "mariadb",
                "--no-defaults",
                "-uroot",
                "-S",
                str(self.where.mysql_socket),
            ],
            "mariadb-client",
            stdin=text.encode(),
        )

    def rabbitmq(self) -> None:
        """RabbitMQ with an epmd of its own, both on 127.0.0.1 only.

        It begins empty at each start: no message outlives the cloud.
        """
        folder = self.where.base / "rabbitmq"
        if not self.processes.alive("rabbitmq"):
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("mnesia", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "plugins").write_text("[].\n")
        env = self.environment() | {
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": ADDRESS,
            "ERL_EPMD_PORT": str(PORTS["epmd"]),
        }
        self.processes.start(
            "epmd",
            [
                sys.executable,
                HERE / "listener.py",
                ADDRESS,
                str(PORTS["epmd"]),
                "/usr/bin/epmd",
                "-systemd",
            ],
            env=env,
            ready=lambda: port_open(PORTS["epmd"]),
        )
        interface = "{" + ADDRESS.replace(".", ",") + "}"
        env |= {
            "RUNNING_UNDER_SYSTEMD": "1",  # no shell between it and us
            "RABBITMQ_NODENAME": "minicloud@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": ADDRESS,
            "RABBITMQ_NODE_PORT": str(PORTS["rabbitmq"]),
            "RABBITMQ_DIST_PORT": str(PORTS["rabbitmq distribution"]),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": f"{folder}/none",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(
                (
                    f"-kernel inet_dist_use_interface {interface}",
                    "-start_epmd false +sbwt none +S 1:1",
                )
            ),
        }
        self.processes.start(
            "rabbitmq",
            ["/usr/lib/rabbitmq/bin/rabbitmq-server"],
            env=env,
            ready=lambda: port_open(PORTS["rabbitmq"]),
            timeout=90,
        )

    def web(self, name: str) -> None:
        """One of the web services, in a uWSGI of its own."""
        port = PORTS[name]
        conf = {"glance": "glance-api.conf"}.get(name, f"{name}.conf")
        more = []
        if name == "cinder":  # it has no variable for it
            more = ["--pyargv", f"--config-file {self.where.etc / conf}"]
        self.processes.start(
            name,
            [
                self.where.bin / "uwsgi",
                "--http-socket",
                f"{ADDRESS}:{port}",
                "--module",
                WSGI[name],
                "--master",
                "--die-on-term",
                "--processes",
                "1",
                "--threads",
                "4",
                "--enable-threads",
                "--lazy-apps",
                "--need-app",
                "--buffer-size",
                "65535",
                "--http-chunked-input",
                "--chunked-input-limit",
                "16777216",
                "--chunked-input-timeout",
                "60",
                "--add-header",
                "Connection: close",
                "--so-keepalive",
                "--thunder-lock",
                "--no-orphans",
                "--disable-logging",
                *more,
            ],
            env=self.environment(),
            inputs=[self.where.etc / conf],
            ready=lambda: answers(f"http://{ADDRESS}:{port}/"),
            timeout=90,
        )

    def neutron(self) -> None:
        script = HERE / "neutron_stub.py"
        port = PORTS["neutron"]
        self.processes.start(
            "neutron",
            [sys.executable, script, str(port)],
            env=self.environment(),
            inputs=[script],
            ready=lambda: answers(f"http://{ADDRESS}:{port}/"),
        )

    def nova(self, name: str) -> None:
        """The conductor or the scheduler."""
        files = [self.where.etc / "nova.conf", self.where.etc / f"{name}.conf"]
        argv: list[str | os.PathLike[str]] = [self.where.bin / f"nova-{name}"]
        for path in files:
            argv += ["--config-file", path]
        self.processes.start(
            f"nova-{name}",
            argv,
            env=self.environment(),
            inputs=files,
            ready=lambda: consumers(name) > 0,
            timeout=90,
        )


def port_open(port: int, address: str = ADDRESS) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def answers(url: str) -> bool:
    """Whether an HTTP server answers at all, be it with an error."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=20).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500
    except OSError:
        return False
    return True


def consumers(queue: str) -> int:
    """How many services take messages from a queue of the bus."""
    try:
        with amqp.Connection(
            f"{ADDRESS}:{PORTS['rabbitmq']}", connect_timeout=3
        ) as bus:
            with bus.channel() as channel:
                found = channel.queue_declare(queue, passive=True)
                return int(found.consumer_count)
    except (OSError, amqp.exceptions.AMQPError):
        return 0

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

"""From empty databases to a cloud with projects, users and services."""

from __future__ import annotations

import pathlib
import typing

import openstack

from tests.minicloud.layout import ADDRESS, PORTS
from tests.minicloud.services import DATABASES, HERE, Controller

# user -> password, project and role beside those of the services
PEOPLE = {
    "admin": ("admin", "admin", "admin"),
    "tenant": ("tenant", "tenant", "member"),
    "other": ("other", "other", "member"),
}

SERVICES = {
    "glance": ("image", f"http://{ADDRESS}:{PORTS['glance']}"),
    "placement": ("placement", f"http://{ADDRESS}:{PORTS['placement']}"),
    "nova": ("compute", f"http://{ADDRESS}:{PORTS['nova']}/v2.1"),
    "neutron": ("network", f"http://{ADDRESS}:{PORTS['neutron']}"),
}


def environment(user: str) -> dict[str, str]:
    """The variables with which the clients act as a user."""
    password, project, _ = PEOPLE[user]
    return {
        "OS_AUTH_URL": f"http://{ADDRESS}:{PORTS['keystone']}/v3",
        "OS_USERNAME": user,
        "OS_PASSWORD": password,
        "OS_PROJECT_NAME": project,
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
        "OS_IDENTITY_API_VERSION": "3",
        "OS_REGION_NAME": "RegionOne",
        "OS_COMPUTE_API_VERSION": "2.95",
        "no_proxy": "127.0.0.1",
    }


def connect(user: str) -> openstack.connection.Connection:
    """An SDK connection that reads nothing but what stands here."""
    password, project, _ = PEOPLE[user]
    return openstack.connect(
        load_yaml_config=False,
        load_envvars=False,
        region_name="RegionOne",
        api_timeout=120,
        auth={
            "auth_url": f"http://{ADDRESS}:{PORTS['keystone']}/v3",
            "username": user,
            "password": password,
            "project_name": project,
            "user_domain_id": "default",
            "project_domain_id": "default",
        },
        compute_default_microversion="2.95",
    )


class Setup:
    """The steps of the first start; none is repeated once all are done."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.where = controller.where

    @property
    def _mark(self) -> pathlib.Path:
        return self.where.state / "complete"

    @property
    def complete(self) -> bool:
        return self._mark.exists()

    def finish(self) -> None:
        self._mark.touch()

    def manage(
        self, service: str, conf: str, *commands: tuple[str, ...]
    ) -> None:
        """Run commands of a service's management tool, one by one."""
        argv = [str(self.where.bin / "python"), str(HERE / "manage.py")]
        argv.append(f"{service}.cmd.manage")
        for command in commands:
            argv += ["--", "--config-file", str(self.where.etc / conf)]
            argv += command
        self.controller.run(argv, f"setup-{service}")

    def databases(self) -> None:
        if self.complete:
            return
        self.controller.sql(
            "".join(
                f"create database if not exists {name};" for name in DATABASES
            )
        )

    def keystone(self) -> None:
        if self.complete:
            return
        for name in ("fernet-keys", "credential-keys"):
            (self.where.state / name).mkdir(mode=0o700, exist_ok=True)
        url = f"http://{ADDRESS}:{PORTS['keystone']}/v3"

        root = ("--keystone-user", "root", "--keystone-group", "root")
        self.manage(
            "keystone",
            "keystone.conf",
            ("db_sync",),
            ("fernet_setup", *root),
            ("credential_setup", *root),
            (
                *("bootstrap", "--bootstrap-password", "admin"),
                *("--bootstrap-admin-url", url),
                *("--bootstrap-internal-url", url),
                *("--bootstrap-public-url", url),
                *("--bootstrap-region-id", "RegionOne"),
            ),
        )

    def glance(self) -> None:
        if self.complete:
            return
        for name in ("glance", "glance-staging", "glance-tasks", "lock"):
            (self.where.state / name).mkdir(exist_ok=True)
        self.manage("glance", "glance-api.conf", ("db_sync",))

    def placement(self) -> None:
        if not self.complete:
            self.manage("placement", "placement.conf", ("db", "sync"))

    def nova(self) -> None:
        if self.complete:
            return
        (self.where.state / "nova").mkdir(exist_ok=True)
        cell0 = "mysql+pymysql://root@localhost/nova_cell0?unix_socket=" + str(
            self.where.mysql_socket
        )
        self.manage(
            "nova",
            "nova.conf",
            ("api_db", "sync"),
            ("cell_v2", "map_cell0", "--database_connection", cell0),
            ("db", "sync"),
            ("cell_v2", "create_cell", "--name", "cell1"),
        )

    def people(self) -> None:
        """Projects, users, roles, services and endpoints."""
        if self.complete:
            return
        cloud = connect("admin").identity
        service = cloud.find_project("service") or cloud.create_project(
            name="service", domain_id="default"
        )
        for name in ("glance", "nova", "placement"):
            self.user(cloud, name, "secret", service, ("admin", "service"))
        for name, (password, project, role) in PEOPLE.items():
            if name == "admin":
                continue
            home = cloud.find_project(project) or cloud.create_project(
                name=project, domain_id="default"
            )
            self.user(cloud, name, password, home, (role,))
        for name, (kind, url) in SERVICES.items():
            self.endpoint(cloud, name, kind, url)

    @staticmethod
    def endpoint(cloud: typing.Any, name: str, kind: str, url: str) -> None:
        """A service in the catalogue, unless it is there."""
        if cloud.find_service(name):
            return
        made = cloud.create_service(name=name, type=kind)
        for interface in ("public", "internal", "admin"):
            cloud.create_endpoint(
                service_id=made.id,
                url=url,
                interface=interface,
                region_id="RegionOne",
            )

    @staticmethod
    def user(
        cloud: typing.Any,
        name: str,
        password: str,
        project: typing.Any,
        roles: tuple[str, ...],
    ) -> None:
        user = cloud.find_user(name) or cloud.create_user(
            name=name,
            password=password,
            domain_id="default",
            default_project_id=project.id,
        )
        for role in roles:
            cloud.assign_project_role_to_user(
                project,
                user,
                cloud.find_role(role) or cloud.create_role(name=role),
            )

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

"""Images, flavors and servers of the tests, with bounded waits."""

from __future__ import annotations

import pathlib
import time
import typing

from tests.minicloud.pids import CloudError

Connection = typing.Any
Server = typing.Any


def upload(
    conn: Connection,
    name: str,
    path: pathlib.Path,
    disk_format: str = "raw",
    **properties: str,
) -> typing.Any:
    """Upload an image and return it once it is active."""
    image = conn.image.create_image(
        name,
        filename=str(path),
        disk_format=disk_format,
        container_format="bare",
        wait=True,
        validate_checksum=False,
        allow_duplicates=True,
        **properties,
    )
    end = time.monotonic() + 60
    while time.monotonic() < end:
        image = conn.image.get_image(image.id)
        if image.status == "active":
            return image
        time.sleep(0.2)
    raise CloudError(f"image {name} is {image.status}")


def flavor(
    conn: Connection, name: str, *, ram: int = 64, disk: int = 1, **specs: str
) -> typing.Any:
    """A flavor, made if there is none of that name (needs an admin)."""
    found = conn.compute.find_flavor(name)
    if found is None:
        found = conn.compute.create_flavor(
            name=name, ram=ram, vcpus=1, disk=disk
        )
        if specs:
            conn.compute.create_flavor_extra_specs(found, specs)
    return found


def create(
    conn: Connection,
    name: str,
    image: typing.Any,
    flavor: typing.Any,
    **more: typing.Any,
) -> Server:
    """Ask for a server, without networks, and do not wait for it.

    `host="node1"` (an admin's right) names the host it must be on.
    """
    return conn.compute.create_server(
        name=name,
        image_id=image.id,
        flavor_id=flavor.id,
        networks="none",
        **more,
    )


#: Seconds from a server's ERROR to the words about it, at most.
FAULT = 5.0


def wait_status(
    conn: Connection, server: Server, *wanted: str, timeout: float = 90.0
) -> Server:
    """Wait for one of the states; ERROR ends the wait, too.

    Nova says why in a record of its own, a moment after the state.
    """
    end = time.monotonic() + timeout
    why = None
    while time.monotonic() < end:
        server = conn.compute.get_server(server.id)
        failed = server.status == "ERROR" and not server.task_state
        if failed and not fault(server):
            why = why or time.monotonic() + FAULT
        if server.status in wanted or failed:
            if why is None or fault(server) or time.monotonic() > why:
                return server
        time.sleep(0.1)
    raise CloudError(
        f"server {server.name} is {server.status} "
        f"({server.task_state}) after {timeout:.0f} s"
    )


def fault(server: Server) -> str:
    return str((server.fault or {}).get("message", ""))


def boot(
    conn: Connection,
    name: str,
    image: typing.Any,
    flavor: typing.Any,
    *,
    timeout: float = 90.0,
    **more: typing.Any,
) -> Server:
    """Create a server and wait until it is ACTIVE."""
    server = wait_status(
        conn,
        create(conn, name, image, flavor, **more),
        "ACTIVE",
        timeout=timeout,
    )
    if server.status != "ACTIVE":
        raise CloudError(f"server {name} is {server.status}: {fault(server)}")
    return server


def console(conn: Connection, server: Server) -> str:
    """What the guest wrote to its serial port, through Nova's API."""
    answer = conn.compute.get_server_console_output(server.id)
    return str(answer.get("output") or "")


def wait_console(
    conn: Connection,
    server: Server,
    token: str,
    timeout: float = 60.0,
    count: int = 1,
) -> str:
    """Wait until the console shows a token so many times."""
    end = time.monotonic() + timeout
    text = ""
    while time.monotonic() < end:
        text = console(conn, server)
        if text.count(token) >= count:
            return text
        time.sleep(0.1)
    raise CloudError(
        f"{token} is not on the console of {server.name} after "
        f"{timeout:.0f} s; it ends: {text[-300:]!r}"
    )


def delete(conn: Connection, server: Server, timeout: float = 60.0) -> None:
    """Delete a server and wait until it is gone."""
    conn.compute.delete_server(server.id, ignore_missing=True)
    conn.compute.wait_for_delete(server, interval=0.2, wait=timeout)


def purge(conn: Connection) -> None:
    """Delete every server, image and flavor (needs an admin)."""
    servers = list(conn.compute.servers(all_projects=True))
    for server in servers:
        conn.compute.delete_server(server, force=True)
    for server in servers:
        conn.compute.wait_for_delete(server, interval=0.3, wait=60)
    images = [
        *conn.image.images(),
        *conn.image.images(visibility="community"),
    ]
    for image in images:
        if image.is_protected:
            conn.image.update_image(image, is_protected=False)
        conn.image.delete_image(image)
    for flavor in conn.compute.flavors(is_public=None):
        conn.compute.delete_flavor(flavor)

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
"""Glance's operator, on Glance's own tables in a MariaDB of its own."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from tests.minicloud.foul.glance import Glance

pytestmark = pytest.mark.skipif(
    shutil.which("mariadbd") is None, reason="MariaDB is not there"
)
IMAGE = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"


@pytest.fixture(scope="module")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("db")
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", f"--datadir={folder}/data"]
        + ["--skip-test-db", "--user=root", "--skip-name-resolve"]
        + ["--auth-root-authentication-method=normal"],
        check=True,
        capture_output=True,
    )
    path = folder / "sock"
    with subprocess.Popen(
        ["mariadbd", "--no-defaults", "--user=root", "--skip-networking"]
        + [f"--datadir={folder}/data", f"--socket={path}"]
        + [f"--pid-file={folder}/pid", f"--tmpdir={folder}"]
        + ["--innodb-flush-log-at-trx-commit=0", "--skip-log-bin"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            end = time.monotonic() + 30
            while not path.exists():
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            yield path
        finally:
            server.kill()


# in a process of its own: glance adds command line options to the one CONF
# of oslo.config, which nova's tests have parsed by then
TABLES = """
import sys
import sqlalchemy
from glance.db.sqlalchemy import models
models.BASE.metadata.create_all(
    sqlalchemy.create_engine(sys.argv[1]),
    tables=[models.Image.__table__, models.ImageProperty.__table__],
)
"""


@pytest.fixture(scope="module")
def engine(mariadb: Path) -> sqlalchemy.Engine:
    url = f"mysql+pymysql://root@localhost/?unix_socket={mariadb}"
    with sqlalchemy.create_engine(url).connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE glance"))
    url = url.replace("/?", "/glance?")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TABLES, url], check=True
    )
    return sqlalchemy.create_engine(url)


@pytest.fixture
def glance(engine: sqlalchemy.Engine, mariadb: Path, tmp_path: Path) -> Glance:
    contents = os.urandom(100_000)
    with engine.begin() as connection:
        for table in ("image_properties", "images"):
            connection.execute(
                sqlalchemy.text(f"DELETE FROM {table}")  # noqa: S608
            )
        for image in (IMAGE, OTHER):
            (tmp_path / image).write_bytes(contents)
            connection.execute(
                sqlalchemy.text(
                    "INSERT INTO images (id, status, visibility, owner,"
                    " checksum, os_hash_algo, os_hash_value, size, min_disk,"
                    " min_ram, protected, os_hidden, created_at, deleted)"
                    " VALUES (:id, 'active', 'shared', 'p', :md5, 'sha512',"
                    " :sha, :size, 0, 0, 0, 0, NOW(), 0)"
                ),
                {
                    "id": image,
                    "md5": hashlib.md5(contents).hexdigest(),  # noqa: S324
                    "sha": hashlib.sha512(contents).hexdigest(),
                    "size": len(contents),
                },
            )
            for name, value in (
                ("mh_version", "1"),
                ("mh_key_url", "https://127.0.0.1:1/v1/keys/" + image),
                ("mh_manifest", "manifest of " + image),
                ("os_encrypt_key_id", image),
            ):
                connection.execute(
                    sqlalchemy.text(
                        "INSERT INTO image_properties (image_id, name,"
                        " value, created_at, deleted)"
                        " VALUES (:image, :name, :value, NOW(), 0)"
                    ),
                    {"image": image, "name": name, "value": value},
                )
    return Glance(mariadb, tmp_path)


def consistent(glance: Glance) -> bool:
    """What Nova's client would check."""
    data, row = glance.path(IMAGE).read_bytes(), glance.image(IMAGE)
    return bool(
        row["size"] == len(data)
        and row["os_hash_value"] == hashlib.sha512(data).hexdigest()
        and row["checksum"] == hashlib.md5(data).hexdigest()  # noqa: S324
    )


@pytest.mark.parametrize(
    ("offset", "data"),
    [(None, None), (5, b"other"), (99_999, b"longer")],
)
def test_bytes(glance: Glance, offset: int | None, data: bytes | None) -> None:
    before, row = glance.path(IMAGE).read_bytes(), glance.image(IMAGE)
    assert consistent(glance)
    undo = glance.change_bytes(IMAGE, offset, data)
    assert glance.path(IMAGE).read_bytes() != before
    assert glance.image(IMAGE) != row
    assert consistent(glance)
    undo()
    assert glance.path(IMAGE).read_bytes() == before
    assert glance.image(IMAGE) == row


def test_properties(glance: Glance) -> None:
    before, others = glance.properties(IMAGE), glance.properties(OTHER)
    undo = glance.swap_manifest(IMAGE, OTHER)
    assert glance.properties(IMAGE)["mh_manifest"] == "manifest of " + OTHER
    undo()
    undo = glance.redirect_key(IMAGE, "https://169.254.169.254/v1/keys/x")
    assert "169.254" in glance.properties(IMAGE)["mh_key_url"]
    undo()
    undo = glance.set_properties(IMAGE, {"new": "1", "mh_version": None})
    assert glance.properties(IMAGE)["new"] == "1"
    assert "mh_version" not in glance.properties(IMAGE)
    undo()
    undo = glance.strip(IMAGE)
    assert set(glance.properties(IMAGE)) == {"os_encrypt_key_id"}
    # one more on top, undone in the wrong order too
    glance.set_properties(IMAGE, {"mh_version": "2"})
    assert glance.properties(IMAGE)["mh_version"] == "2"
    undo()
    assert glance.properties(IMAGE) == before
    assert glance.properties(OTHER) == others


def test_no_image(glance: Glance) -> None:
    with pytest.raises((LookupError, FileNotFoundError)):
        glance.change_bytes("33333333-3333-4333-8333-333333333333")

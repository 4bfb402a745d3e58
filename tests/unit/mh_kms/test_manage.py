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

"""mh-kms-manage."""

import json
import pathlib
import stat

import pytest

from mh_core import jose
from mh_core.errors import MHError
from mh_kms import conf as conf_module
from mh_kms import deploy
from mh_kms.db import migration, tokens
from tests.unit.mh_kms.world import World


def test_sync_makes_all_that_is_needed_and_once(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path)
    assert world.manage("db", "version") == 0
    assert capsys.readouterr().out == "none\n"
    world.sync()
    before = (tmp_path / "kek").read_bytes()
    for name in ("kek", "kms.sqlite"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    capsys.readouterr()
    assert world.manage("transport-key", "show") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["thumbprint"] == jose.thumbprint(shown["jwk"])
    assert "d" not in shown["jwk"]
    world.sync()
    assert (tmp_path / "kek").read_bytes() == before
    capsys.readouterr()
    assert world.manage("transport-key", "show") == 0
    assert json.loads(capsys.readouterr().out) == shown
    assert world.manage("db", "version") == 0
    assert capsys.readouterr().out == f"{migration.HEAD}\n"


def test_a_lost_kek_is_not_replaced(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path)
    world.sync()
    (tmp_path / "kek").unlink()
    assert world.manage("db", "sync") == 1
    assert "kms.key-store.kek" in capsys.readouterr().err
    assert not (tmp_path / "kek").exists()


def test_another_kek_stops_the_start(tmp_path: pathlib.Path) -> None:
    world = World(tmp_path)
    world.sync()
    (tmp_path / "kek").write_bytes(bytes(32))
    assert world.manage("db", "sync") == 1
    conf = conf_module.load(str(world.config))
    with pytest.raises(MHError) as caught:
        deploy.build(conf)
    assert caught.value.event == "kms.key-store.sealed"


def test_no_server_without_sync(tmp_path: pathlib.Path) -> None:
    conf = conf_module.load(str(World(tmp_path).config))
    with pytest.raises(MHError) as caught:
        deploy.build(conf)
    assert caught.value.event == "kms.db.version"


def test_tokens(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("token", "create", "--project", "p", "--roles", "owner,auditor")
    assert world.manage(*argv, "--name", "printed") == 0
    token = capsys.readouterr().out.strip()
    caller = tokens.find(world.parts.database, token.encode())
    assert caller is not None
    assert (caller.name, caller.project) == ("printed", "p")
    assert caller.roles == ("owner", "auditor")

    out = world.base / "token"
    assert world.manage(*argv, "--name", "filed", "--out", str(out)) == 0
    assert capsys.readouterr().out == ""
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert tokens.find(world.parts.database, out.read_bytes().strip())

    assert world.manage("token", "list") == 0
    listed = capsys.readouterr().out
    assert token not in listed
    assert {one["name"] for one in json.loads(listed)} == {
        "owner",
        "printed",
        "filed",
    }
    assert world.manage("token", "revoke", "printed") == 0
    assert tokens.find(world.parts.database, token.encode()) is None
    assert world.manage("token", "revoke", "printed") == 1
    assert "kms.token.unknown" in capsys.readouterr().err
    raw = b"".join(p.read_bytes() for p in world.base.glob("kms.sqlite*"))
    assert token.encode() not in raw


def test_out_replaces_a_link_and_does_not_follow_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    target, out = world.base / "target", world.base / "token"
    target.write_text("x")
    out.symlink_to(target)
    argv = ("token", "create", "--project", "p", "--roles", "owner")
    assert world.manage(*argv, "--name", "n", "--out", str(out)) == 0
    assert target.read_text() == "x"
    assert not out.is_symlink()


@pytest.mark.parametrize(
    ("roles", "name", "event"),
    [
        ("root", "n", "kms.token.roles"),
        ("owner,", "n", "kms.token.roles"),
        ("", "n", "kms.token.roles"),
        ("owner", "", "kms.token.name"),
        ("owner", "owner", "kms.token.name"),
    ],
)
def test_bad_tokens(
    world: World,
    capsys: pytest.CaptureFixture[str],
    roles: str,
    name: str,
    event: str,
) -> None:
    argv = ("token", "create", "--project", "p", "--roles", roles)
    out = world.base / "token"
    assert world.manage(*argv, "--name", name, "--out", str(out)) == 1
    assert event in capsys.readouterr().err
    assert len(tokens.listed(world.parts.database)) == 1
    assert not out.exists()


def test_audit_verify(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.create_key()
    assert world.manage("audit", "verify") == 0
    assert json.loads(capsys.readouterr().out)["records"] >= 2
    with world.parts.database.transaction() as connection:
        connection.execute("update audit set record = x'7b7d'")
    assert world.manage("audit", "verify") == 1
    assert "core.audit.chain" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["[kms]\n", "[kms]\norigin = http://x\n", "nonsense"]
)
def test_bad_configuration(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    world = World(tmp_path)
    world.config.write_text(text)
    conf_error = world.manage("db", "sync")
    assert conf_error == 1
    assert "mh-kms-manage:" in capsys.readouterr().err
    assert not (tmp_path / "kms.sqlite").exists()

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
"""``mh-attest-manage``: schema, keys, tokens, identity, audit."""

import argparse
import json
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import sqlalchemy as sa
from oslo_config import cfg

from mh_attest import audit_check, authority, log
from mh_attest import conf as conf_module
from mh_attest.db import engine as db_engine
from mh_attest.db import migration, tokens
from mh_attest.journal import Journal
from mh_core.encoding import b64u
from mh_core.errors import InputError, MHError, NotFound
from mh_core.secret import Secret

Command = Callable[[cfg.ConfigOpts, argparse.Namespace], None]
NAME = r"[A-Za-z0-9._\-]{1,64}"


def _say(document: object) -> None:
    print(json.dumps(document, indent=2, sort_keys=True))


def _load(conf: cfg.ConfigOpts) -> authority.Authority:
    return authority.load(
        pathlib.Path(conf.authority.state_dir), conf.authority.issuer
    )


def _write(
    conf: cfg.ConfigOpts,
    record: dict[str, str],
    change: Callable[[sa.Connection], None],
) -> str:
    """One change and its audit record, in a chain of this command's own."""
    journal = Journal(
        db_engine.connect(conf),
        str(uuid.uuid4()),
        _load(conf).result_key,
        time.time,
    )
    try:
        return journal.write({**record, "caller": "mh-attest-manage"}, change)
    finally:
        journal.close()


def db_sync(conf: cfg.ConfigOpts, _options: argparse.Namespace) -> None:
    state = pathlib.Path(conf.authority.state_dir)
    made = authority.create(state, datetime.now(UTC))
    os.umask(0o077)
    engine = db_engine.connect(conf)
    migration.sync(engine)
    _say({"schema": migration.version(engine), "made": made})


def db_version(conf: cfg.ConfigOpts, _options: argparse.Namespace) -> None:
    _say({"schema": migration.version(db_engine.connect(conf))})


def token_create(conf: cfg.ConfigOpts, options: argparse.Namespace) -> None:
    roles = tuple(dict.fromkeys(options.roles.split(",")))
    if not set(roles) <= set(tokens.ROLES):
        raise InputError(
            "attest.token.roles", "roles are " + ", ".join(tokens.ROLES)
        )
    if not options.name or not options.name.isprintable():
        raise InputError("attest.token.name", "a name is needed")
    token = Secret(b64u(os.urandom(32)).encode())
    out = None
    if options.out:
        # Before the database knows it: a token nobody has is no use.
        try:
            out = os.open(
                options.out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600
            )
        except OSError as exc:
            raise InputError(
                "attest.token.out",
                f"the file cannot be made: {os.strerror(exc.errno or 0)}",
            ) from exc

    def change(connection: sa.Connection) -> None:
        tokens.create(
            connection,
            options.name,
            roles,
            tokens.digest(token),
            int(time.time()),
        )

    try:
        _write(
            conf,
            {
                "event": "attest.token.created",
                "name": options.name,
                "roles": ",".join(roles),
            },
            change,
        )
    except MHError:
        if out is not None:
            os.close(out)
            os.unlink(options.out)
        raise
    if out is None:
        print(token.reveal().decode())
    else:
        with open(out, "wb") as file:
            file.write(token.reveal() + b"\n")


def token_list(conf: cfg.ConfigOpts, _options: argparse.Namespace) -> None:
    with db_engine.connect(conf).connect() as connection:
        found = tokens.every(connection)
    _say(
        [
            {"name": name, "roles": roles.split(","), "created_at": created}
            for name, roles, created in found
        ]
    )


def token_revoke(conf: cfg.ConfigOpts, options: argparse.Namespace) -> None:
    def change(connection: sa.Connection) -> None:
        if not tokens.revoke(connection, options.name):
            raise NotFound("attest.token.unknown", "no token of that name")

    _write(
        conf, {"event": "attest.token.revoked", "name": options.name}, change
    )


def identity_show(conf: cfg.ConfigOpts, _options: argparse.Namespace) -> None:
    _say(_load(conf).identity())


def audit_verify(conf: cfg.ConfigOpts, _options: argparse.Namespace) -> None:
    with db_engine.connect(conf).connect() as connection:
        _say(audit_check.verify(connection, _load(conf).jwk()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mh-attest-manage",
        description="Manage the trust attestation server.",
    )
    parser.add_argument(
        "--config-file",
        default="/etc/mh-attest/mh-attest.conf",
        help="the configuration file",
    )
    nouns = parser.add_subparsers(required=True, metavar="NOUN")

    def noun(
        name: str, text: str
    ) -> "argparse._SubParsersAction[argparse.ArgumentParser]":  # noqa: E501
        return nouns.add_parser(name, help=text).add_subparsers(
            required=True, metavar="VERB"
        )

    database = noun("db", "schema, and the server's keys")
    one = database.add_parser("sync", help="make what is absent")
    one.set_defaults(run=db_sync)
    one = database.add_parser("version", help="show the schema's version")
    one.set_defaults(run=db_version)
    token = noun("token", "callers")
    one = token.add_parser("create", help="make a token; shown only once")
    one.add_argument("--name", required=True)
    one.add_argument(
        "--roles", required=True, help="some of operator,reader,relying"
    )
    one.add_argument("--out", help="a new file (0600) instead of the screen")
    one.set_defaults(run=token_create)
    one = token.add_parser("list", help="list tokens by name")
    one.set_defaults(run=token_list)
    one = token.add_parser("revoke", help="forget a token")
    one.add_argument("--name", required=True)
    one.set_defaults(run=token_revoke)
    identity = noun("identity", "what tenants pin")
    one = identity.add_parser("show", help="show it as JSON")
    one.set_defaults(run=identity_show)
    audit = noun("audit", "the audit chains")
    one = audit.add_parser("verify", help="walk every chain")
    one.set_defaults(run=audit_verify)
    return parser


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    conf = conf_module.load([options.config_file])
    log.setup(conf)
    command: Command = options.run
    try:
        command(conf, options)
    except MHError as exc:
        print(exc, file=sys.stderr)
        return 1
    except (OSError, sa.exc.SQLAlchemyError) as exc:
        print(f"{type(exc).__name__}: cannot do that", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

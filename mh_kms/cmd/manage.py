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

"""mh-kms-manage: database, tokens, transport key, audit."""

import argparse
import json
import os
import sys
import time
from typing import Any

from oslo_config import cfg

from mh_core.errors import InputError, MHError
from mh_core.secret import Secret
from mh_kms import conf as conf_module
from mh_kms import key_stores, ledger, transport
from mh_kms.db import migration, tokens
from mh_kms.db.connection import Database, path_of
from mh_kms.ledger import Ledger


class Manager:
    """One method per command; each prints what it has to say."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self.conf = conf
        self.path = path_of(conf.database.connection)
        self.database = Database(self.path)
        self.ledger = Ledger(self.database, time.time)

    def db_sync(self, _options: argparse.Namespace) -> None:
        migration.sync(self.path)
        empty = not self.database.fetch_all(
            "select 1 from transport_keys union all select 1 from keys"
        )
        key_store = key_stores.load(self.conf)
        key_store.prepare(empty)
        transport.create(self.ledger, key_store)
        transport.load(self.database, key_store)

    def db_version(self, _options: argparse.Namespace) -> None:
        print(migration.version(self.path) or "none")

    def token_create(self, options: argparse.Namespace) -> None:
        migration.require(self.database)
        roles = tuple(dict.fromkeys(options.roles.split(",")))
        if not set(roles) <= set(tokens.ROLES):
            raise InputError(
                "kms.token.roles", "roles: " + ", ".join(tokens.ROLES)
            )
        if not options.name or not options.project:
            raise InputError("kms.token.name", "name and project are needed")
        token = tokens.make(os.urandom(32))
        with self.ledger.transaction() as entry:
            made = tokens.add(
                entry.connection,
                token,
                options.name,
                options.project,
                roles,
                entry.now,
            )
            entry.record(
                "kms.token.created",
                "",
                token_id=made.id,
                name=made.name,
                project=made.project,
                roles=list(made.roles),
            )
            if options.out:
                # Not written: not made.
                _write(options.out, token)
        if not options.out:
            print(token.reveal().decode())

    def token_list(self, _options: argparse.Namespace) -> None:
        migration.require(self.database)
        _show(tokens.listed(self.database))

    def token_revoke(self, options: argparse.Namespace) -> None:
        migration.require(self.database)
        with self.ledger.transaction() as entry:
            found = tokens.revoke(entry.connection, options.name, entry.now)
            entry.record("kms.token.revoked", "", token_id=found)
        _show({"id": found})

    def transport_key_show(self, _options: argparse.Namespace) -> None:
        migration.require(self.database)
        key_store = key_stores.load(self.conf)
        transport.create(self.ledger, key_store)
        key = transport.load(self.database, key_store)
        _show({"jwk": key.public, "thumbprint": key.thumbprint})

    def audit_verify(self, _options: argparse.Namespace) -> None:
        migration.require(self.database)
        chains, records = ledger.verify(self.database)
        _show({"chains": chains, "records": records})


def _show(document: Any) -> None:
    print(json.dumps(document, indent=2, sort_keys=True))


def _write(path: str, token: Secret) -> None:
    """A new file, mode 0600; an existing one is replaced as a whole."""
    partial = f"{path}.new"
    try:
        if os.path.lexists(partial):
            os.unlink(partial)
        fd = os.open(
            partial,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
            0o600,
        )
        with os.fdopen(fd, "wb") as file:
            file.write(token.reveal() + b"\n")
        os.rename(partial, path)
    except OSError as exc:
        raise InputError(
            "kms.token.out", "the file cannot be written"
        ) from exc


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="mh-kms-manage", description="Manage the key server."
    )
    top.add_argument(
        "--config-file", required=True, help="the server's configuration"
    )
    nouns = top.add_subparsers(dest="noun", required=True)

    def verbs(noun: str, text: str) -> Any:
        one = nouns.add_parser(noun, help=text)
        return one.add_subparsers(dest="verb", required=True)

    db = verbs("db", "the database")
    db.add_parser("sync", help="make or upgrade it, and the server's keys")
    db.add_parser("version", help="print its revision")
    token = verbs("token", "bearer tokens of owners and auditors")
    create = token.add_parser("create", help="make a token")
    create.add_argument("--name", required=True, help="who it is for")
    create.add_argument(
        "--project", required=True, help="project whose keys it is for"
    )
    create.add_argument(
        "--roles",
        required=True,
        help="comma-separated, of " + ", ".join(tokens.ROLES),
    )
    create.add_argument(
        "--out", help="file for the token (mode 0600) instead of printing it"
    )
    token.add_parser("list", help="list tokens, without the tokens")
    revoke = token.add_parser("revoke", help="make a token worthless")
    revoke.add_argument("name", help="its name or id")
    key = verbs("transport-key", "key that clients wrap keys to")
    key.add_parser("show", help="print the public key and its thumbprint")
    audit = verbs("audit", "the audit records")
    audit.add_parser("verify", help="walk every chain")
    return top


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        manager = Manager(conf_module.load(options.config_file))
        name = f"{options.noun}_{options.verb}".replace("-", "_")
        try:
            getattr(manager, name)(options)
        finally:
            manager.database.close()
    except (MHError, cfg.Error, OSError) as exc:
        print(f"mh-kms-manage: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

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

"""Put the key server together: parts, middleware, routes."""

import os
import time

import falcon
from oslo_config import cfg

from mh_kms import attestors, handler, key_stores, policy_checks, transport
from mh_kms.access import Access
from mh_kms.db import migration
from mh_kms.db.connection import Database, path_of
from mh_kms.ledger import Ledger
from mh_kms.middleware import RequestLog, Resource, install_errors
from mh_kms.parts import Parts


def build(conf: cfg.ConfigOpts) -> Parts:
    """Everything a request needs; what cannot work stops the start.

    :raises MHError: database, keys, a driver or a check.
    """
    database = Database(path_of(conf.database.connection))
    migration.require(database)
    key_store = key_stores.load(conf)
    return Parts(
        origin=conf.kms.origin,
        origins=frozenset((conf.kms.origin, *conf.kms.accepted_origins)),
        database=database,
        ledger=Ledger(database, time.time, kept=conf.kms.audit_kept),
        key_store=key_store,
        transport=transport.load(database, key_store),
        attestor=attestors.load(conf),
        checks=policy_checks.load(conf.kms.policy_checks),
        access=Access(conf),
        clock=time.time,
        random=os.urandom,
    )


def application(parts: Parts) -> falcon.App:
    """The WSGI application over given parts."""
    app = falcon.App(middleware=[RequestLog()], media_type=falcon.MEDIA_JSON)
    app.req_options.strip_url_path_trailing_slash = False
    install_errors(app)
    for template, methods in handler.ROUTES.items():
        app.add_route(template, Resource(parts, methods))
    return app


def deploy(conf: cfg.ConfigOpts) -> falcon.App:
    """The WSGI application of a configuration."""
    return application(build(conf))

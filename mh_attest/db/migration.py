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
"""Schema management by alembic."""

import pathlib

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext


def _config() -> Config:
    config = Config()
    folder = pathlib.Path(__file__).parent / "alembic"
    config.set_main_option("script_location", str(folder))
    return config


def sync(engine: sa.Engine) -> None:
    """Bring the schema to the newest version."""
    config = _config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def version(engine: sa.Engine) -> str:
    """Revision of the schema, empty where there is none."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        return context.get_current_revision() or ""

"""The schema of the database: its migration to the newest one, and the options of Alembic."""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from ml.store.tables import metadata

VERSION_TABLE = "tips_schema"
"""Alembic's version table, named so that other programs can use the same database."""


def migrate(connection: Connection) -> None:
    """Migrate the database to the newest schema, in the caller's transaction."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def is_current(connection: Connection) -> bool:
    """Return whether the database has the newest schema."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return set(context.get_current_heads()) == set(ScriptDirectory.from_config(_config()).get_heads())


def configuration(connection: Connection) -> dict[str, Any]:
    """Return the options of Alembic's migration context."""
    return {
        "connection": connection,
        "target_metadata": metadata,
        "version_table": VERSION_TABLE,
        "render_as_batch": True,
        # Tables of other programs are ignored.
        "include_name": lambda name, type_, _: type_ != "table" or name in metadata.tables,
    }


def _config() -> Config:
    config = Config()
    config.set_main_option("path_separator", "os")
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config

"""What Alembic runs for each command: it is handed a connection, with a transaction begun."""

from alembic import context

from ml.store.tables import configuration

context.configure(**configuration(context.config.attributes["connection"]))
with context.begin_transaction():
    context.run_migrations()

"""Alembic's environment: it receives a connection on which a transaction has begun."""

from alembic import context

from ml.store.schema import configuration

context.configure(**configuration(context.config.attributes["connection"]))
with context.begin_transaction():
    context.run_migrations()

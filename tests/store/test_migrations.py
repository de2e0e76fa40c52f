"""The migrations make what the models say, checks included, which Alembic does not compare."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, inspect

from store.database import Database
from store.models import Row


def test_migrations_and_models_agree(database: Database) -> None:
    database.check()
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Row.metadata) == []


def test_checks_are_those_of_the_models(database: Database) -> None:
    found = inspect(database.engine)
    for table in Row.metadata.sorted_tables:
        wanted = {str(check.name) for check in table.constraints if isinstance(check, CheckConstraint)}
        names = {str(check["name"]) for check in found.get_check_constraints(table.name)}
        assert names == wanted
        for check in found.get_check_constraints(table.name):
            declared = next(
                c for c in table.constraints if isinstance(c, CheckConstraint) and str(c.name) == check["name"]
            )
            for value in str(declared.sqltext).split("'")[1::2]:
                assert f"'{value}'" in check["sqltext"]


def test_migrating_again_changes_nothing(database: Database) -> None:
    database.migrate()
    database.check()

"""What has to be there before the service runs: good settings, the data folder, the tables, an admin's key, models."""

import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from store.database import Database, DatabaseError, now
from store.keys import create_key
from store.models import ApiKey
from store.settings import BaseModelEntry, Settings

KEY_FILE = "admin.key"
PROJECT = "default"
DEMO_MODEL = "semievol-demo"
DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "base"
PREFIX = "SEMIEVOL_"


class SetupError(Exception):
    """The service cannot start as things are; the message, a line for each problem, says what to do."""


@dataclass(frozen=True, slots=True)
class FirstKey:
    """Where the admin's key is, and the key itself if this start made it."""

    path: Path
    clear: str | None


# --- settings ---------------------------------------------------------------------------------------------------------


def read_settings(**over: Any) -> Settings:
    """Settings from the environment, with those of `over` that are not None over them. Raises SetupError."""
    try:
        return Settings(**{name: value for name, value in over.items() if value is not None})
    except ValidationError as error:
        raise SetupError("\n".join(_problem(found) for found in error.errors())) from None
    except SettingsError as error:  # not even JSON
        field = re.search(r'field "(\w+)"', str(error))
        name = PREFIX + field[1].upper() if field else "a setting"
        raise SetupError(f"{name}: this is not JSON") from None


def _problem(error: Any) -> str:
    name = PREFIX + "__".join(str(part) for part in error["loc"]).upper()
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"


def environment(settings: Settings) -> dict[str, str]:
    """The process's environment with `settings` in it, so that a child reads exactly these."""
    ours = {PREFIX + name.upper() for name in Settings.model_fields}
    nested = tuple(f"{name}__" for name in ours)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() not in ours and not name.upper().startswith(nested)
    }
    dumped = settings.model_dump(mode="json")
    return kept | {PREFIX + name.upper(): _written(value) for name, value in dumped.items() if value is not None}


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def with_demo_model(settings: Settings) -> Settings:
    """The settings with the demo's base model on the allow-list, where this is a checkout that has it."""
    if DEMO_MODEL in settings.models or not (DEMO_FOLDER / "config.json").is_file():
        return settings
    models = settings.models | {DEMO_MODEL: BaseModelEntry(source=str(DEMO_FOLDER))}
    return settings.model_copy(update={"models": models})


# --- data folder and database -----------------------------------------------------------------------------------------


def make_data_folder(path: Path) -> None:
    """Make the folder, readable by its owner only. Raises SetupError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SetupError(
            f"the data folder {path} cannot be made: {error.strerror}; choose another with --data"
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise SetupError(f"the data folder {path} cannot be written to; choose another with --data")


def open_database(settings: Settings) -> Database:
    """The database of the settings, not connected yet. Raises SetupError."""
    try:
        return Database(settings.database_url)
    except (SQLAlchemyError, ImportError) as error:
        raise SetupError(f"{PREFIX}DATABASE_URL: this address cannot be used: {error}") from None


def migrate(database: Database) -> tuple[str | None, str | None]:
    """Bring the tables to this version; returns the versions before and after. Raises SetupError."""
    try:
        before = _revision(database)
        database.migrate()
        return before, _revision(database)
    except (SQLAlchemyError, CommandError) as error:
        try:
            database.check()
        except DatabaseError as reason:
            raise SetupError(str(reason)) from None
        raise SetupError(f"the database cannot be migrated: {error}") from error


def make_ready(database: Database) -> None:
    """Migrate SQLite, which nobody else does; see that any other database is migrated. Raises SetupError."""
    if database.is_sqlite:
        migrate(database)
        return
    try:
        database.check()
    except DatabaseError as error:
        raise SetupError(str(error)) from None


def _revision(database: Database) -> str | None:
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


# --- key --------------------------------------------------------------------------------------------------------------


def first_key(database: Database, data: Path) -> FirstKey:
    """Make an admin's key if there is none, and write it where only the owner of the data folder can read it."""
    path = data / KEY_FILE
    valid = ApiKey.revoked_at.is_(None) & (ApiKey.expires_at.is_(None) | (ApiKey.expires_at > now()))
    with database.write() as session:
        if session.scalars(select(ApiKey.id).where(ApiKey.admin, valid).limit(1)).first():
            return FirstKey(path, None)
        _, clear = create_key(session, PROJECT, "first admin key", admin=True)
        _write_secret(path, clear)  # before the commit: a key that nobody can read would lock everybody out
    return FirstKey(path, clear)


def _write_secret(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with open(partial, "x", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)

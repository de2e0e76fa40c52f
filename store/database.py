"""The database: SQLite or PostgreSQL behind one pair of doors, `read` and `write`.

Only the database's clock counts (`now`). A write transaction on SQLite begins IMMEDIATE, so that what it read is still
true when it writes; on PostgreSQL statements that must not race name their states in WHERE or lock a row.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Double, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
BUSY_SECONDS = 30
PING_SECONDS = 1
"""A connection that lay idle for longer is tried before it is used."""


class DatabaseError(Exception):
    """The database cannot be used as it is; the message says what to do."""


class now(FunctionElement[float]):  # noqa: N801  -- reads as the SQL function it is
    """Seconds since 1970 by the database's clock."""

    type = Double()
    inherit_cache = True


@compiles(now, "postgresql")
def _now_in_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


@compiles(now, "sqlite")
def _now_in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


class Database:
    """A pool of connections. Sessions keep their objects readable after the commit."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        if self.url.drivername in {"postgresql", "postgres"}:
            self.url = self.url.set(drivername="postgresql+psycopg")
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite(self) if self.is_sqlite else _postgresql(self)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction that commits on leaving."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One transaction that only reads; never waits for a writer."""
        with (
            self.engine.connect().execution_options(reads=True) as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            yield session

    @contextmanager
    def glance(self) -> Iterator[Session]:
        """For one statement that reads. PostgreSQL gets no transaction around it, which would be two more trips."""
        if self.is_sqlite:
            with self.read() as session:
                yield session
            return
        with (
            self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            yield session

    def check(self) -> None:
        """Raises DatabaseError, saying what to do, if it cannot be reached or is not at this version's schema."""
        wanted = script().get_current_head()
        try:
            with self.engine.connect() as connection:
                found = MigrationContext.configure(connection).get_current_revision()
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            shown = self.url.render_as_string(hide_password=True)
            raise DatabaseError(f"the database {shown} cannot be reached: {reason}") from error
        if found == wanted:
            return
        if found is None:
            raise DatabaseError("the database holds no tables yet; run: semievol migrate")
        known = {revision.revision for revision in script().walk_revisions()}
        if found in known:
            raise DatabaseError(
                f"the database is at version {found} and this program wants {wanted}; run: semievol migrate"
            )
        raise DatabaseError(f"the database is at version {found}, which a newer program made; run that program")

    def migrate(self) -> None:
        """Bring the schema to this version."""
        from alembic import command  # noqa: PLC0415  -- only here

        config = alembic_config()
        if self.is_sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        with self.engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _sqlite(database: Database) -> Engine:
    engine = create_engine(database.url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # BEGIN is ours
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"busy_timeout={BUSY_SECONDS * 1000}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _postgresql(database: Database) -> Engine:
    engine = create_engine(database.url, pool_size=20)

    @event.listens_for(engine, "checkin")
    def note(connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ping(connection: Any, record: Any, proxy: Any) -> None:
        """SQLAlchemy's own `pool_pre_ping` would ask each time, a trip that takes as long as a statement."""
        if time.monotonic() - record.info.get("used", -math.inf) > PING_SECONDS:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise DisconnectionError(str(error)) from error

    return engine


def alembic_config() -> Config:
    """Alembic's configuration without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def script() -> ScriptDirectory:
    """The migrations."""
    return ScriptDirectory.from_config(alembic_config())

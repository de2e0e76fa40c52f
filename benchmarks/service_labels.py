"""Pseudo-labels on PostgreSQL: a page out of 10 million rows against the same page out of 10,000, and the bulk load.

Each number of rows has a database of its own; what is timed is `labels_after` in a transaction of its own, without the
HTTP around it, which would only hide differences. The load is compared with a bare COPY of the same rows into the same
empty table, as psycopg users write it (`write_row`) and as bytes that are COPY's text already.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, text
from sqlalchemy.engine import make_url

from benchmarks.service_rig import PROJECT, ROUNDS, alternate, folder_bytes_free, seconds_of, verdict
from store.database import Database
from store.models import Job, Project, PseudoLabel
from store.pseudo_labels import COLUMNS, LabelFilter, LabelRow, Order, labels_after, load
from tests.servers import postgres

MOST_PAGE, MOST_LOAD = 3.0, 1.5
JOB = "ftjob-0123456789abcdef01234567"
PAGE = 100
LARGE, SMALL = 10_000_000, 10_000
_BYTES_PER_ROW = 1200
_TABLE = PseudoLabel.__table__
_COLUMN_LIST = ", ".join(COLUMNS)
_ROWS_IN_SQL = (
    f"INSERT INTO pseudo_labels ({_COLUMN_LIST}) SELECT '{JOB}', 1, n, 'row-' || n, "
    "'My printer on floor ' || n % 40 || ' prints blank pages since the update, ticket ' || n, "
    "'queue-' || n % 32, 'queue-' || n % 32, CASE WHEN hashint8(n) % 2 = 0 THEN 'accept' ELSE 'reject' END, "
    "CASE WHEN hashint8(n) % 2 = 0 THEN 'selected' ELSE 'entropy' END, 'consistent', 0.9, 0.8, 0.75, "
    "abs(hashint8(n + 1) % 1000) / 500.0, 0.25 FROM generate_series(CAST(:first AS bigint), :last) n"
)
_BATCH = 1_000_000


def new_database(server: str, name: str) -> Database:
    """A migrated database of that name with one job."""
    with (
        closing(Database(server)) as first,
        first.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        connection.execute(text(f"CREATE DATABASE {name}"))
    made = Database(make_url(server).set(database=name).render_as_string(hide_password=False))
    made.migrate()
    empty: dict[str, Any] = {"model_source": {}, "recipe": {}, "inputs": {}, "asked": {}}
    with made.write() as session:
        session.add(Project(id=PROJECT))
        session.flush()
        session.add(Job(id=JOB, project_id=PROJECT, created_by="k", method="semievol", model="m", seed=0, **empty))
    return made


def fill(database: Database, rows: int) -> None:
    """That many rows; the indexes are made afterwards, as that is faster, and the statistics as autovacuum would."""
    assert isinstance(_TABLE, Table)
    with database.engine.begin() as connection:
        connection.execute(text("SET session_replication_role = replica"))  # no check of each foreign key
        connection.execute(text("SET maintenance_work_mem = '1GB'"))
        for index in _TABLE.indexes:
            index.drop(connection)
        for first in range(1, rows + 1, _BATCH):
            connection.execute(text(_ROWS_IN_SQL), {"first": first, "last": min(rows, first + _BATCH - 1)})
        for index in _TABLE.indexes:
            index.create(connection)
        connection.execute(text("SET session_replication_role = DEFAULT"))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE pseudo_labels"))
        connection.execute(text("CHECKPOINT"))


def page_seconds(database: Database, wanted: LabelFilter, after: int, order: Order = "line") -> float:
    """The median of ten pages, of which no two are the same."""
    found = []
    for place in range(10):
        started = time.perf_counter()
        with database.read() as session:
            rows = labels_after(session, JOB, wanted, after + place, PAGE + 1, order)
        found.append(time.perf_counter() - started)
        if len(rows) <= PAGE:
            raise RuntimeError(f"only {len(rows)} rows match")
    return statistics.median(found)


def pages(server: str, large_rows: int, rounds: int) -> bool:
    """All kinds of pages; whether all are within the bar."""
    sizes = {"small": SMALL, "large": large_rows}
    databases = {name: new_database(server, name) for name in sizes}
    for name, database in databases.items():
        print(f"{sizes[name]:,} rows in {seconds_of(lambda: fill(database, sizes[name])):.0f} s", flush=True)  # noqa: B023
    kinds: Mapping[str, tuple[LabelFilter, float] | tuple[LabelFilter, float, Order]] = {
        "first page": (LabelFilter(), 0.0),
        "page in the middle": (LabelFilter(), 0.5),
        "decision=reject": (LabelFilter(decision="reject"), 0.0),
        "decision=reject, in the middle": (LabelFilter(decision="reject"), 0.5),
        "min_entropy of a third of the rows": (LabelFilter(min_entropy=1.33), 0.0),
        "min_entropy of 1 in 50 rows": (LabelFilter(min_entropy=1.96), 0.0),
        "order=-entropy, in the middle": (LabelFilter(), 0.5, "-entropy"),
        "decision=reject, order=entropy, in the middle": (LabelFilter(decision="reject"), 0.5, "entropy"),
    }

    def peer(name: str, wanted: LabelFilter, part: float, order: Order = "line") -> Callable[[], float]:
        return lambda: page_seconds(databases[name], wanted, int(part * sizes[name]), order)

    met = True
    for kind, asked in kinds.items():
        medians = alternate({name: peer(name, *asked) for name in sizes}, rounds)
        shown = f"{kind}: {1000 * medians['large']:.2f} ms / {1000 * medians['small']:.2f} ms"
        met = verdict(shown, medians["large"] / medians["small"], "", most=MOST_PAGE) and met
    for database in databases.values():
        database.close()
    return met


def label(line: int) -> LabelRow:
    """A row as the worker has it."""
    queue, kept = f"queue-{line % 32}", line * 2654435761 % 2**32 < 2**31
    question = f"My printer on floor {line % 40} prints blank pages since the update, ticket {line}"
    decision, reason = ("accept", "selected") if kept else ("reject", "entropy")
    entropy = line * 2654435761 % 1000 / 500
    return LabelRow(
        line, f"row-{line}", question, queue, queue, decision, reason, "consistent", 0.9, 0.8, 0.75, entropy, 0.25
    )


def loading(server: str, rows: int, rounds: int) -> bool:
    """The load against COPY."""
    with closing(new_database(server, "loading")) as database:
        labels = [label(line) for line in range(1, rows + 1)]
        records = [(JOB, 1, *one) for one in labels]
        lines = "".join("\t".join(map(str, record)) + "\n" for record in records).encode()

        def ours() -> None:
            with database.write() as session:
                load(session, JOB, 1, labels)

        def by_rows() -> None:
            with database.engine.begin() as connection:
                _copy(connection, lambda copy: [copy.write_row(record) for record in records])

        def by_bytes() -> None:
            block = 256 * 1024
            with database.engine.begin() as connection:
                _copy(
                    connection,
                    lambda copy: [copy.write(lines[at : at + block]) for at in range(0, len(lines), block)],
                )

        def peer(work: Callable[[], None]) -> Callable[[], float]:
            def run() -> float:
                _empty(database)
                return seconds_of(work)

            return run

        peers = {"load": ours, "COPY, write_row": by_rows, "COPY, bytes": by_bytes}
        medians = alternate({name: peer(work) for name, work in peers.items()}, rounds)
    print(f"{rows:,} rows into the empty table, medians of {rounds} alternating rounds")
    for name, found in medians.items():
        print(f"  {name:20s} {found:8.2f} s")
    print(f"  load / COPY of bytes: {medians['load'] / medians['COPY, bytes']:.2f}")
    return verdict("load / COPY", medians["load"] / medians["COPY, write_row"], "", most=MOST_LOAD)


def _copy(connection: Connection, write: Callable[[Any], object]) -> None:
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY pseudo_labels ({_COLUMN_LIST}) FROM STDIN") as copy:
        write(copy)


def _empty(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("TRUNCATE pseudo_labels"))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CHECKPOINT"))


def main_pages(large_rows: int = LARGE, rounds: int = ROUNDS) -> bool:
    """Whether pages are fast enough."""
    if folder_bytes_free(Path("/tmp")) < large_rows * _BYTES_PER_ROW:
        print(f"Left out: /tmp has no room for {large_rows:,} rows.")
        return False
    with postgres() as server:
        return pages(server, large_rows, rounds)


def main_load(rows: int = 1_000_000, rounds: int = ROUNDS) -> bool:
    """Whether the load is fast enough."""
    with postgres() as server:
        return loading(server, rows, rounds)

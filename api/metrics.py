"""Figures for Prometheus: latencies counted here, and the state of the queue asked of the database at each scrape."""

import re
from collections import defaultdict
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store.database import Database, now
from store.models import Job, StageRow, Unit, Worker
from store.states import ACTIVE

_SHARD = re.compile(r"-[0-9]+$")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Latency:
    """How long requests take, by method, route template and status. Its registry is its own: apps share nothing."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "semievol_request_seconds",
            "Time from request to the end of the answer.",
            ("method", "route", "status"),
            buckets=BUCKETS,
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        known = method if method in {"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"} else "other"
        self._seconds.labels(known, route, str(status)).observe(seconds)


class QueueCollector(Collector):
    """What the database says of units, jobs and stages, asked anew at each scrape."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        with self.database.read() as session:
            yield _ages(session, "queue_age", "Age of the oldest ready unit of an active job.", "ready")
            yield _ages(session, "lease_age", "Time since the start of the oldest running unit.", "running")
            yield _by_state(session)
            yield _by_status(session)
            yield _workers(session)
            yield from _stages(session)


def _ages(session: Session, name: str, text: str, state: str) -> Metric:
    since = Unit.ready_at if state == "ready" else Unit.started_at
    active = select(Job.id).where(Job.status.in_(ACTIVE))  # units of a paused job wait for a person, not for a worker
    age = session.execute(
        select(now() - func.min(since)).where(Unit.state == state, Unit.job_id.in_(active))
    ).scalar_one()
    return GaugeMetricFamily(f"semievol_{name}_seconds", text, value=max(0.0, age or 0.0))


def _by_state(session: Session) -> Metric:
    units = GaugeMetricFamily("semievol_units", "Units by kind and state.", labels=("kind", "state"))
    for kind, state, count in session.execute(
        select(Unit.kind, Unit.state, func.count()).group_by(Unit.kind, Unit.state)
    ):
        units.add_metric((kind, state), count)
    return units


def _by_status(session: Session) -> Metric:
    jobs = GaugeMetricFamily("semievol_jobs", "Jobs by status.", labels=("status",))
    for status, count in session.execute(select(Job.status, func.count()).group_by(Job.status)):
        jobs.add_metric((status,), count)
    return jobs


def _workers(session: Session) -> Metric:
    seen = session.execute(select(func.count()).select_from(Worker).where(Worker.seen_at > now() - 60)).scalar_one()
    return GaugeMetricFamily("semievol_workers", "Workers seen in the last minute.", value=seen)


def stage_kind(name: str) -> str:
    """What a stage does, without its round and shard: `round-2/generate-00003` is `generate`."""
    return _SHARD.sub("", name.rpartition("/")[2])


def _stages(session: Session) -> Iterator[Metric]:
    counts, seconds = defaultdict[str, int](int), defaultdict[str, float](float)
    tokens = 0
    rows = session.execute(select(StageRow.name, StageRow.seconds, StageRow.facts)).yield_per(1000)
    for name, took, facts in rows:
        kind = stage_kind(name)
        counts[kind] += 1
        seconds[kind] += took
        made = facts.get("tokens", 0)
        tokens += made if kind == "generate" and isinstance(made, int) else 0
    durations = SummaryMetricFamily("semievol_stage_seconds", "Time that committed stages took.", labels=("stage",))
    for kind, count in counts.items():
        durations.add_metric((kind,), count, seconds[kind])
    yield durations
    yield CounterMetricFamily("semievol_generated_tokens", "Tokens that generation stages made.", value=tokens)

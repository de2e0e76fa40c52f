"""What a dashboard asks for of a job with a million pseudo-labels, over HTTP, on PostgreSQL and on SQLite.

The rows are as selection makes them: those accepted are the surest, so that a page of the surest rejected rows lies far
down in an order by confidence. Shards have 512 rows of 4 collaborators; all but their lines are the same in each shard.
Besides there is a job whose rows are all generated and not yet decided. Figures are medians of requests one after the
other; of pages within an order and of details no two ask for the same.
"""

import hashlib
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from playwright.sync_api import sync_playwright
from sqlalchemy import text

from benchmarks.service_rig import PROJECT, Client, Process, memory_mb, seconds_of, service, verdict
from semievol.histograms import Agreement, RoundSummary
from semievol.tables import ANSWERED, EXAMPLES, write_rows
from store import jobs
from store.database import Database
from store.models import Job, Project, StageRow
from store.objects import ObjectStore, open_objects
from store.pseudo_labels import LabelRow, load
from store.settings import Settings
from tests.browser.conftest import CHROMIUM
from tests.servers import postgres

MOST_OPENING_MS, MOST_MB = 300.0, 200.0
ASKED = 20
SHARD = 512
QUEUES = [f"queue-{number}" for number in range(8)]
DECIDED, GENERATING = "ftjob-00000000000000000000000a", "ftjob-00000000000000000000000b"
_COLLABORATORS, _LABELED = 4, 1000
_QUESTION = "My printer on floor {0} prints blank pages since the update, and nothing that I tried helped: ticket {1}"


def label(line: int) -> LabelRow:
    """A decided row: half of them accepted, each by its confidence."""
    sure, queue = line * 2654435761 % 2**32 / 2**32, QUEUES[line % len(QUEUES)]
    decision, reason = ("accept", "confident") if sure > 0.5 else ("reject", "not_confident")
    outcome = "consistent" if sure > 0.3 else "majority" if line % 1000 else "balanced"
    question, entropy = _QUESTION.format(line % 40, line), -math.log(max(sure, 1e-9))
    return LabelRow(
        line, f"row-{line}", question, queue, queue, decision, reason, outcome, sure, sure, 0.75, entropy, 0.25
    )


def records(first: int, rows: int) -> list[dict[str, Any]]:
    """So many rows as the stage `generate` writes them."""
    logprobs = [math.log((place + 1) / 36) for place in range(len(QUEUES))]
    trials = [
        {
            "collaborator": number, "seed": 2**62 + number, "worked_examples": ["L1", "L2", "L3"],
            "similarities": [0.5, 0.6, 0.7], "reply": QUEUES[7], "answer": QUEUES[7], "logprobs": [logprobs[7]],
            "tokens": [QUEUES[7]], "option_logprobs": logprobs,
        }
        for number in range(_COLLABORATORS)
    ]  # fmt: skip
    return [
        {
            "id": row.row_id, "line": row.line, "options": None,
            "messages": [{"role": "user", "content": row.question, "weight": 1}],
            "trials": trials, "justification": None,
        }
        for row in map(label, range(first, first + rows))
    ]  # fmt: skip


def shard_files(folder: Path, objects: ObjectStore, rows: int) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, facts and files of each shard. Of all files but the first only the lines are made anew, which is faster."""
    template, path = pa.Table.from_pylist(records(1, SHARD), schema=ANSWERED), folder / "answered.parquet"
    place = ANSWERED.get_field_index("line")
    agreement = Agreement()
    for row in map(label, range(1, SHARD + 1)):
        agreement.see("consistent" if row.outcome == "consistent" else "differed", row.entropy or 0.0)
    for shard, first in enumerate(range(1, rows + 1, SHARD)):
        size = min(SHARD, rows + 1 - first)
        lines = pa.array(range(first, first + size), pa.int64())
        table = template.slice(0, size).set_column(place, ANSWERED.field("line"), lines)
        pq.write_table(table, path, compression="zstd")
        facts = {"rows": size, "lines": [first, first + size - 1], **agreement.told()}
        yield f"round-1/generate-{shard:05d}", facts, {path.name: put(objects, path)}


def put(objects: ObjectStore, path: Path) -> dict[str, Any]:
    """Store a file; its entry in a manifest."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    entry = {"bytes": path.stat().st_size, "sha256": sha256}
    objects.put(path, sha256)
    return entry


def fill(database: Database, objects: ObjectStore, folder: Path, rows: int) -> None:
    """Both jobs with their stages, and the decided one's rows."""
    train, told = folder / "train.parquet", folder / "summary.json"
    turn = {"role": "user", "content": _QUESTION.format(1, "of the labeled rows"), "weight": 1}
    labeled = ({"id": f"L{n}", "line": n, "messages": [turn], "options": None, "reply": QUEUES[0]} for n in count(1))
    write_rows(train, EXAMPLES, (next(labeled) for _ in range(_LABELED)), _LABELED)
    summary = RoundSummary("probability")
    for row in map(label, range(1, rows + 1)):
        summary.see(row._asdict(), settled=row.decision == "accept")
    told.write_text(json.dumps(summary.told()))
    prepared = {"rows": {"unlabeled": rows}, "answers": {"options": QUEUES}}
    stages = [
        ("prepare", prepared, {train.name: put(objects, train)}),
        *shard_files(folder, objects, rows),
        ("round-1/select", {}, {told.name: put(objects, told)}),
    ]
    recipe = {"rounds": 1, "generation": {"shard_size": SHARD}}
    empty: dict[str, Any] = {"model_source": {}, "recipe": recipe, "inputs": {}, "asked": {}}
    with database.write() as session:
        if session.get(Project, PROJECT) is None:
            session.add(Project(id=PROJECT))
            session.flush()
        for job_id, committed in ((DECIDED, stages), (GENERATING, stages[:-1])):
            session.add(
                Job(id=job_id, project_id=PROJECT, created_by="k", method="semievol", model="m", seed=0, **empty)
            )
            session.flush()
            unit = jobs.add_unit(session, job_id, "prepare", "cpu").id
            for number, (name, facts, files) in enumerate(committed, start=1):
                made: dict[str, Any] = {"number": number, "seconds": 1.0, "facts": facts, "files": files}
                session.add(StageRow(job_id=job_id, name=name, unit_id=unit, **made))
        load(session, DECIDED, 1, map(label, range(1, rows + 1)))


def milliseconds(ask: Callable[[], object]) -> float:
    """The median of `ASKED` calls."""
    return statistics.median(1000 * seconds_of(ask) for _ in range(ASKED))


def measure(process: Process, key: str, rows: int) -> bool:
    """All that is asked for, each with its figure; whether the bars are met."""
    under = f"/v1/fine_tuning/jobs/{DECIDED}"
    labels, generating = f"{under}/pseudo_labels", f"/v1/fine_tuning/jobs/{GENERATING}/pseudo_labels"
    lines = _spread(rows)
    before = memory_mb(process.pid, "VmRSS")
    with closing(Client(process.port)) as client:

        def get(path: str) -> bytes:
            return client.get(path, key)

        def opening() -> None:
            for path in (under, f"{labels}/summary", f"{labels}?limit=100"):
                get(path)

        first = 1000 * seconds_of(lambda: get(f"{generating}/summary"))
        print(f"  {'summary of a job being generated, first':58s} {first:9.1f} ms", flush=True)
        kinds: dict[str, Callable[[], object]] = {
            "summary of a job being generated, again": lambda: get(f"{generating}/summary"),
            "summary of a decided job": lambda: get(f"{labels}/summary"),
        }
        for order in ("line", "entropy", "-entropy", "confidence", "-confidence"):
            kinds[f"page of 100, order={order}"] = _page(get, f"{labels}?order={order}", lines)
        for wanted in ("decision=reject&order=-confidence", "decision=accept&order=confidence", "outcome=balanced"):
            kinds[f"first page, {wanted}"] = lambda wanted=wanted: get(f"{labels}?{wanted}")  # type: ignore[misc]
        kinds["detail of a row"] = lambda: get(f"{labels}/{next(lines)}")
        for name, ask in kinds.items():
            print(f"  {name:58s} {milliseconds(ask):9.1f} ms", flush=True)
        met = verdict("opening: job, summary and first page", milliseconds(opening), "ms", most=MOST_OPENING_MS)
    if CHROMIUM is None:
        print("  no Chromium is installed, so the page was not opened in one")
    else:
        seen = opened_in_a_browser(f"http://127.0.0.1:{process.port}", key, CHROMIUM)
        met = verdict("the page of the labels in Chromium", seen, "ms", most=MOST_OPENING_MS) and met
    print(f"  {'resident memory of the API, before':58s} {before:9.1f} MB")
    return verdict("resident memory of the API, at most", memory_mb(process.pid, "VmHWM"), "MB", most=MOST_MB) and met


DRAWN = """new MutationObserver((_, watch) => {
  if (!document.querySelector("tbody tr")) return;
  watch.disconnect();
  requestAnimationFrame(() => setTimeout(() => { window.drawn = performance.now(); }));
}).observe(document, { childList: true, subtree: true });"""
"""Notes in the page when its rows were painted, in milliseconds since the navigation began."""


def opened_in_a_browser(url: str, key: str, chromium: str) -> float:
    """Milliseconds from the beginning of the navigation until the rows of the labels are painted, assets in the cache.

    The median of `ASKED` navigations, each to a whole new document.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(base_url=url)
        context.request.post("/v1/session", data={"api_key": key})
        context.add_init_script(DRAWN)
        page = context.new_page()
        taken = []
        for _ in range(ASKED + 1):
            page.goto(f"/jobs/{DECIDED}/labels", wait_until="commit")
            page.locator("tbody tr").first.wait_for()
            page.wait_for_timeout(200)
            taken.append(float(page.evaluate("window.drawn")))
        browser.close()
    return statistics.median(taken[1:])


def _spread(rows: int) -> Iterator[int]:
    """Lines all over the file."""
    return (1 + number * 7919 * 131 % rows for number in count(1))


def _page(get: Callable[[str], bytes], path: str, lines: Iterator[int]) -> Callable[[], object]:
    return lambda: get(f"{path}&after={next(lines)}")


def main(rows: int = 1_000_000, kinds: Sequence[str] = ("PostgreSQL", "SQLite")) -> bool:
    """Fill and measure each kind of database; whether the bars are met."""
    met = True
    for kind in kinds:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            url = stack.enter_context(postgres()) if kind == "PostgreSQL" else f"sqlite:///{folder / 'bench.db'}"
            process, key = stack.enter_context(service(folder, url))
            objects = open_objects(Settings(data=folder / "data"))
            with closing(Database(url)) as database:
                seconds = seconds_of(lambda: fill(database, objects, folder, rows))  # noqa: B023
                if kind == "PostgreSQL":
                    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                        connection.execute(text("VACUUM ANALYZE"))
            print(f"{kind}, {rows:,} rows, stored in {seconds:.0f} s", flush=True)
            met = measure(process, key, rows) and met
    return met

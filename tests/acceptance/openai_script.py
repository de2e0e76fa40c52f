"""What a user of the `openai` client does, and whether it is answered as the client expects; for majors 1, 2 and 3.

Needs only the client and the standard library. Run by test_openai_clients.py as `python openai_script.py FACTS`, where
FACTS is a JSON object (see `Facts`). Prints a JSON line for each check: its name, whether it is ok, and why not.
"""

import hashlib
import json
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai

MODEL = "semievol-demo"
WAIT_SECONDS = 300
MIB = 1024**2


@dataclass(frozen=True)
class Facts:
    """Addresses, keys and files. The tight service has small limits and is the same otherwise."""

    url: str
    key: str
    other_key: str
    tight_url: str
    quota_key: str
    rate_key: str
    labeled: str
    unlabeled: str
    recipe: dict[str, Any]
    upload_bytes: int
    part_bytes: int
    only: list[str] | None = None
    """Names of the checks to run; null runs all."""


@dataclass
class World:
    """What one check leaves for the next."""

    facts: Facts
    client: openai.OpenAI
    files: dict[str, str] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    """In the order of their creation; the first one succeeds."""
    hook: str = ""
    """Where webhooks go."""
    secret: str = ""
    deliveries: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


Check = Callable[[World], str | None]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Checks run in the order of the file. One may return a remark."""
    CHECKS.append(function)
    return function


def expect(condition: object, *told: object) -> None:
    """Unlike `assert`, also with -O."""
    if not condition:
        raise AssertionError(*told)


def wait_until(look: Callable[[], Any], what: str) -> Any:
    """What `look` returns once it is true."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := look()):
        expect(time.monotonic() < deadline, f"{what} did not come")
        time.sleep(0.3)
    return found


# --- files ------------------------------------------------------------------------------------------------------------


@check
def files_create(world: World) -> None:
    for role in ("labeled", "unlabeled"):
        path = Path(getattr(world.facts, role))
        made = world.client.files.create(file=path, purpose="fine-tune")
        expect(made.filename == path.name and made.bytes == path.stat().st_size, made)
        world.files[role] = made.id


@check
def files_wait_for_processing(world: World) -> None:
    for file_id in world.files.values():
        done = world.client.files.wait_for_processing(file_id, poll_interval=0.1, max_wait_seconds=30)
        expect(done.status == "processed", done)


@check
def files_list_and_retrieve(world: World) -> None:
    paged = [file.id for file in world.client.files.list(limit=1)]
    expect(paged == [world.files["unlabeled"], world.files["labeled"]], paged)
    expect(world.client.files.retrieve(paged[0]).purpose == "fine-tune")
    oldest = next(iter(world.client.files.list(order="asc", purpose="fine-tune")))
    expect(oldest.id == world.files["labeled"], oldest)


@check
def files_content(world: World) -> None:
    content = world.client.files.content(world.files["labeled"]).read()
    expect(content == Path(world.facts.labeled).read_bytes())


@check
def files_delete(world: World) -> None:
    row = Path(world.facts.labeled).read_bytes().splitlines(keepends=True)[0]
    made = world.client.files.create(file=("one.jsonl", row), purpose="fine-tune", expires_after=_expiry())
    expect(made.expires_at == made.created_at + 3600, made)
    gone = world.client.files.delete(made.id)
    expect(gone.deleted and gone.id == made.id, gone)


def _expiry() -> Any:
    return {"anchor": "created_at", "seconds": 3600}


# --- uploads ----------------------------------------------------------------------------------------------------------


def big_file(row: bytes, size: int) -> bytes:
    """Rows of JSONL, about so many bytes."""
    return row * max(1, size // len(row))


@check
def uploads_in_parts(world: World) -> str:
    row = Path(world.facts.labeled).read_bytes().splitlines(keepends=True)[0]
    content = big_file(row, world.facts.upload_bytes)
    started = time.monotonic()
    done = world.client.uploads.upload_file_chunked(
        file=content,
        filename="big.jsonl",
        bytes=len(content),
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=world.facts.part_bytes,
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
    )
    seconds = time.monotonic() - started
    expect(done.status == "completed" and done.file is not None, done)
    assert done.file is not None
    expect(done.file.bytes == len(content) and done.file.status == "processed", done)
    began = time.monotonic()
    same = hashlib.sha256(world.client.files.content(done.file.id).read()).digest() == hashlib.sha256(content).digest()
    expect(same, "other bytes came back")
    world.client.files.delete(done.file.id)
    return f"{len(content):,} bytes up in {seconds:.1f} s, down in {time.monotonic() - began:.1f} s"


@check
def uploads_cancel(world: World) -> None:
    made = world.client.uploads.create(filename="x.jsonl", bytes=10, mime_type="text/jsonl", purpose="fine-tune")
    part = world.client.uploads.parts.create(made.id, data=b"0123456789")
    expect(part.upload_id == made.id, part)
    expect(world.client.uploads.cancel(made.id).status == "cancelled")


# --- webhooks, part one -----------------------------------------------------------------------------------------------


@check
def webhook_endpoint(world: World) -> None:
    body = {"url": world.hook, "events": ["fine_tuning.job.succeeded", "fine_tuning.job.cancelled"]}
    request = urllib.request.Request(
        f"{world.facts.url}/v1/webhook_endpoints",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {world.facts.key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        world.secret = json.load(answer)["secret"]
    expect(world.secret.startswith("whsec_"))


# --- jobs -------------------------------------------------------------------------------------------------------------


def _block(world: World) -> dict[str, Any]:
    return {"unlabeled_file": world.files["unlabeled"], **world.facts.recipe}


@check
def jobs_create_with_method(world: World) -> None:
    method: Any = {"type": "semievol", "semievol": _block(world)}
    job = world.client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=world.files["labeled"],
        method=method,
        seed=3,
        suffix="tickets",
        metadata={"team": "search", "of two": "words"},
    )
    expect(job.status == "validating_files" and job.seed == 3 and job.error is None, job)
    expect(job.metadata == {"team": "search", "of two": "words"}, job.metadata)
    expect(str(job.object) == "fine_tuning.job" and job.model == MODEL, job)
    world.jobs.append(job.id)


@check
def jobs_pause_and_resume(world: World) -> None:
    jobs = world.client.fine_tuning.jobs
    # `str`, as the client's types do not know the status, though its own call leads there.
    expect(str(jobs.pause(world.jobs[0]).status) == "paused")
    expect(str(jobs.retrieve(world.jobs[0]).status) == "paused")
    expect(jobs.resume(world.jobs[0]).status in {"validating_files", "queued", "running"})


@check
def jobs_create_with_extra_body(world: World) -> None:
    job = world.client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=world.files["labeled"],
        metadata={"team": "sales"},
        extra_body={"semievol": _block(world)},
    )
    expect(job.id.startswith("ftjob-") and job.id not in world.jobs, job)
    expect(job.to_dict()["semievol"]["unlabeled_file"] == world.files["unlabeled"])  # type: ignore[index]
    world.jobs.append(job.id)


@check
def jobs_create_supervised(world: World) -> None:
    supervised: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": "auto"}}}
    create = world.client.fine_tuning.jobs.create
    job = create(model=MODEL, training_file=world.files["labeled"], method=supervised)
    expect(job.method is not None and job.method.type == "supervised", job)
    world.jobs.append(job.id)
    again = create(model=MODEL, training_file=world.files["labeled"], method=supervised)
    expect(again.id == job.id, "an identical create is a retry")


@check
def jobs_cancel(world: World) -> None:
    for job_id in world.jobs[1:]:
        job = world.client.fine_tuning.jobs.cancel(job_id)
        expect(job.status == "cancelled" and job.finished_at, job)


@check
def jobs_list_pages_by_itself(world: World) -> None:
    found = [job.id for job in world.client.fine_tuning.jobs.list(limit=1)]
    expect(found == world.jobs[::-1], found)


@check
def jobs_list_by_metadata(world: World) -> str:
    jobs = world.client.fine_tuning.jobs
    found = [job.id for job in jobs.list(extra_query={"metadata[team]": "search", "metadata[of two]": "words"})]
    expect(found == world.jobs[:1], found)
    own = [job.id for job in jobs.list(metadata={"team": "sales"})]
    expect(own == world.jobs[1:2], own)
    # Only a literal metadata=null: clients differ in how they write None.
    without = [job.id for job in jobs.list(extra_query={"metadata": "null"})]
    expect(without == world.jobs[2:], without)
    return "both extra_query and the client's own parameter"


@check
def jobs_run_to_the_end(world: World) -> None:
    def over() -> Any:
        job = world.client.fine_tuning.jobs.retrieve(world.jobs[0])
        return job if job.status in {"succeeded", "failed", "cancelled"} else None

    job = wait_until(over, "the end of the job")
    expect(job.status == "succeeded" and job.error is None, job)
    expect(job.fine_tuned_model.startswith(f"ft:{MODEL}:tickets:"), job)
    expect(job.trained_tokens > 0 and job.finished_at >= job.created_at, job)


@check
def jobs_events(world: World) -> None:
    events = list(world.client.fine_tuning.jobs.list_events(world.jobs[0], limit=3))
    expect(len(events) > 3 and len({event.id for event in events}) == len(events), len(events))
    expect(events[-1].message.startswith("Created fine-tuning job"), events[-1])
    expect({event.level for event in events} <= {"info", "warn", "error"})
    expect({event.type for event in events} <= {"message", "metrics"})


@check
def jobs_checkpoints(world: World) -> None:
    found = list(world.client.fine_tuning.jobs.checkpoints.list(world.jobs[0], limit=1))
    expect(found and all(one.fine_tuning_job_id == world.jobs[0] for one in found), found)
    expect(all(one.step_number > 0 and one.fine_tuned_model_checkpoint for one in found), found)


@check
def jobs_result_files(world: World) -> None:
    job = world.client.fine_tuning.jobs.retrieve(world.jobs[0])
    names = {}
    for file_id in job.result_files:
        file = world.client.files.retrieve(file_id)
        names[file.filename] = world.client.files.content(file_id).read()
    expect(set(names) == {"adapter.zip", "pseudo_labels.jsonl", "report.html", "step_metrics.csv"}, list(names))
    expect(names["adapter.zip"][:2] == b"PK")
    expect(names["pseudo_labels.jsonl"].count(b"\n") == Path(world.facts.unlabeled).read_bytes().count(b"\n"))


@check
def answers_match_the_clients_types(world: World) -> None:
    """Everything whose type has no room for our extensions; a SemiEvol job's `method.type` is one of them."""
    with openai.OpenAI(
        base_url=f"{world.facts.url}/v1", api_key=world.facts.key, _strict_response_validation=True
    ) as strict:
        strict.models.list()
        strict.files.list()
        strict.files.retrieve(world.files["labeled"])
        strict.fine_tuning.jobs.retrieve(world.jobs[2])
        strict.fine_tuning.jobs.list_events(world.jobs[0])
        strict.fine_tuning.jobs.checkpoints.list(world.jobs[0])


# --- models -----------------------------------------------------------------------------------------------------------


@check
def models(world: World) -> None:
    listed = [model.id for model in world.client.models.list()]
    tuned = world.client.fine_tuning.jobs.retrieve(world.jobs[0]).fine_tuned_model
    assert tuned is not None
    expect(set(listed) == {MODEL, tuned}, listed)
    expect(world.client.models.retrieve(tuned).id == tuned)
    expect(world.client.models.delete(tuned).deleted)
    _expect_error(404, openai.NotFoundError, "model_not_found", "model", lambda: world.client.models.retrieve(tuned))


# --- webhooks, part two -----------------------------------------------------------------------------------------------


@check
def webhooks_unwrap(world: World) -> str:
    wait_until(lambda: len(world.deliveries) >= 3, "three deliveries")
    if not hasattr(world.client, "webhooks"):
        return "skipped: this client has no webhooks; they were delivered all the same"
    told = set()
    for headers, body in world.deliveries:
        event: Any = world.client.webhooks.unwrap(body, headers, secret=world.secret)
        told.add((event.type, event.data.id))
    cancelled = {("fine_tuning.job.cancelled", job_id) for job_id in world.jobs[1:]}
    expect(told == cancelled | {("fine_tuning.job.succeeded", world.jobs[0])}, told)
    headers, body = world.deliveries[0]
    try:
        world.client.webhooks.unwrap(body + b" ", headers, secret=world.secret)
    except openai.InvalidWebhookSignatureError:
        return "and a changed body is refused"
    raise AssertionError("a changed body was accepted")


# --- errors -----------------------------------------------------------------------------------------------------------


def _expect_error(status: int, kind: type[Exception], code: str, param: str | None, call: Callable[[], Any]) -> Any:
    try:
        call()
    except openai.APIStatusError as error:
        expect(type(error) is kind, type(error), kind)
        expect(error.status_code == status and error.code == code and error.param == param, error)
        expect(isinstance(error.body, dict) and error.body["message"], error.body)
        expect(error.request_id, "no x-request-id")
        return error
    raise AssertionError(f"no {status}")


@contextmanager
def _client(url: str, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        yield client


@check
def error_400(world: World) -> None:
    create = world.client.fine_tuning.jobs.create
    call = lambda: create(model=MODEL, training_file="file-none")  # noqa: E731
    _expect_error(400, openai.BadRequestError, "invalid_training_file", "training_file", call)


@check
def error_401(world: World) -> None:
    with _client(world.facts.url, "sk-wrong") as client:
        _expect_error(401, openai.AuthenticationError, "invalid_api_key", None, client.models.list)


@check
def error_403(world: World) -> None:
    call = lambda: world.client.models.delete(MODEL)  # noqa: E731
    _expect_error(403, openai.PermissionDeniedError, "cannot_delete_base_model", "model", call)


@check
def error_404(world: World) -> None:
    with _client(world.facts.url, world.facts.other_key) as client:
        call = lambda: client.fine_tuning.jobs.retrieve(world.jobs[0])  # noqa: E731
        _expect_error(404, openai.NotFoundError, "job_not_found", "id", call)
        call_file = lambda: client.files.retrieve(world.files["labeled"])  # noqa: E731
        _expect_error(404, openai.NotFoundError, "file_not_found", "file_id", call_file)


@check
def error_409(world: World) -> None:
    call = lambda: world.client.fine_tuning.jobs.cancel(world.jobs[0])  # noqa: E731
    error = _expect_error(409, openai.ConflictError, "invalid_state", "id", call)
    expect(error.response.headers["x-should-retry"] == "false")


@check
def error_413(world: World) -> None:
    with _client(world.facts.tight_url, world.facts.quota_key) as client:
        call = lambda: client.files.create(file=("x.txt", b"x" * 3000), purpose="user_data")  # noqa: E731
        _expect_error(413, openai.APIStatusError, "file_too_large", "file", call)


@check
def error_422(world: World) -> None:
    call = lambda: world.client.fine_tuning.jobs.list(limit=1000)  # noqa: E731
    _expect_error(422, openai.UnprocessableEntityError, "invalid_request", "limit", call)


@check
def error_429_quota(world: World) -> None:
    with _client(world.facts.tight_url, world.facts.quota_key) as client:
        client.files.create(file=("x.txt", b"x" * 1500), purpose="user_data")
        call = lambda: client.files.create(file=("y.txt", b"y" * 1500), purpose="user_data")  # noqa: E731
        _expect_error(429, openai.RateLimitError, "quota_exceeded", None, call)


@check
def error_429_rate(world: World) -> None:
    with _client(world.facts.tight_url, world.facts.rate_key) as client:

        def call() -> None:
            for _ in range(30):
                client.models.list()

        error = _expect_error(429, openai.RateLimitError, "rate_limit_exceeded", None, call)
        expect(int(error.response.headers["retry-after"]) > 0)


# --- run --------------------------------------------------------------------------------------------------------------


@contextmanager
def receiver(into: list[tuple[dict[str, str], bytes]]) -> Iterator[str]:
    """A server that keeps what it is sent; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            into.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_address[1]}/hook"
        server.shutdown()
        thread.join()


def run(world: World) -> bool:
    """Run all checks; those that need what a failed one makes fail too."""
    good = True
    only = world.facts.only
    for function in [one for one in CHECKS if only is None or one.__name__ in only]:
        line: dict[str, Any] = {"check": function.__name__, "ok": True}
        try:
            line["remark"] = function(world)
        except Exception:  # noqa: BLE001  -- told, with all that is known
            line |= {"ok": False, "why": traceback.format_exc()}
            good = False
        print(json.dumps(line), flush=True)
    return good


def main() -> int:
    facts = Facts(**json.loads(sys.argv[1]))
    print(json.dumps({"openai": openai.__version__}), flush=True)
    with openai.OpenAI(base_url=f"{facts.url}/v1", api_key=facts.key) as client:
        world = World(facts, client)
        with receiver(world.deliveries) as world.hook:
            return 0 if run(world) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Creating, listing and moving jobs, by plain HTTP and by the official client."""

import json
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import event, func, select, update
from tokenizers import Tokenizer

from api.services.validation import pieces, segments
from semievol.estimates.estimate import FRAME_TOKENS
from semievol.prompts import Message
from semievol.recipe import MODEL_RECIPE
from store.models import File, Job, Project, Request, Unit
from store.settings import Settings
from tests.api import rows
from tests.api.service import PROJECT, Server, Service, make_settings, open_service

pytestmark = pytest.mark.slow

JOBS = "/v1/fine_tuning/jobs"
DEMO = Path(__file__).parents[2] / "demo" / "base"


class RecordingBell:
    """Remembers the rings, and whether the job was there when they came."""

    def __init__(self) -> None:
        self.rings: list[set[str]] = []

    def ring(self, kinds: set[str]) -> None:
        self.rings.append(kinds)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    (tiny / MODEL_RECIPE).write_text("warmup: {learning_rate: 2e-3, steps: 10, micro_batch_size: 8}\n")
    return make_settings(tmp_path, retrievers=["my/embedder"])


def error(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    told: dict[str, Any] = answer.json()["error"]
    assert told.keys() == {"message", "type", "param", "code"}
    assert told["code"] == code
    return told


def count(service: Service, table: Any) -> int:
    with service.database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


# --- the official client ----------------------------------------------------------------------------------------------


def test_the_client_creates_a_job_in_both_forms(server: Server) -> None:
    service = server.service
    labeled, unlabeled = rows.add_file(service), rows.add_file(service, "unlabeled")
    block = {"unlabeled_file": unlabeled, "selection": {"theta": 0.5}}
    with server.openai() as client:
        first = client.fine_tuning.jobs.create(
            model="tiny", training_file=labeled, seed=7, suffix="a b", extra_body={"semievol": block}
        )
        method: Any = {"type": "semievol", "semievol": block}
        second = client.fine_tuning.jobs.create(model="tiny", training_file=labeled, method=method)
        assert client.fine_tuning.jobs.retrieve(first.id).to_dict() == first.to_dict()
    assert first.id.startswith("ftjob-")
    assert second.id != first.id
    assert (first.object, first.status, first.seed, first.model) == ("fine_tuning.job", "validating_files", 7, "tiny")
    assert (first.training_file, first.validation_file, first.error) == (labeled, None, None)
    assert (first.result_files, first.trained_tokens, first.organization_id) == ([], None, PROJECT)
    for job in (first, second):
        told = job.to_dict()
        assert told["method"] == {"type": "semievol", "semievol": block}
        extra: Any = told["semievol"]
        assert extra["unlabeled_file"] == unlabeled
        assert extra["recipe"]["selection"]["theta"] == 0.5
        assert extra["recipe"]["warmup"]["learning_rate"] == 2e-3
        assert extra["progress"] == 0
        assert [(stage["name"], stage["state"]) for stage in extra["stages"]] == [("prepare", "ready")]


def test_the_client_creates_plain_fine_tuning(server: Server) -> None:
    labeled, validation = rows.add_file(server.service), rows.add_file(server.service)
    with server.openai() as client:
        plain = client.fine_tuning.jobs.create(
            model="tiny", training_file=labeled, validation_file=validation, hyperparameters={"n_epochs": 3}
        )
        method: Any = {
            "type": "supervised",
            "supervised": {"hyperparameters": {"batch_size": 4, "learning_rate_multiplier": 2, "n_epochs": "auto"}},
        }
        asked = client.fine_tuning.jobs.create(model="tiny", training_file=labeled, method=method)
    recipe = rows.job_row(server.service, plain.id).recipe
    assert (recipe["warmup"]["epochs"], recipe["warmup"]["steps"]) == (3, None)
    assert plain.validation_file == validation
    assert plain.hyperparameters.n_epochs == 3
    assert plain.method is not None
    assert plain.method.type == "supervised"
    recipe = rows.job_row(server.service, asked.id).recipe
    assert (recipe["warmup"]["batch_size"], recipe["warmup"]["micro_batch_size"]) == (4, 4)
    assert (recipe["warmup"]["learning_rate"], recipe["warmup"]["steps"]) == (4e-3, 10)
    assert recipe["evolution"]["learning_rate"] == 2e-4
    assert asked.hyperparameters.n_epochs == "auto"


def test_the_client_pages_and_filters(server: Server) -> None:
    labeled = rows.add_file(server.service)
    made = []
    with server.openai() as client:
        for number in range(5):
            metadata = {"n": str(number), "odd'\"key": str(number % 2)}
            made.append(client.fine_tuning.jobs.create(model="tiny", training_file=labeled, metadata=metadata).id)
        bare = client.fine_tuning.jobs.create(model="tiny", training_file=labeled).id
        assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == [bare, *reversed(made)]
        assert [job.id for job in client.fine_tuning.jobs.list(metadata={"n": "3"})] == [made[3]]
        assert [job.id for job in client.fine_tuning.jobs.list(metadata={"odd'\"key": "1"})] == [made[3], made[1]]
        assert not list(client.fine_tuning.jobs.list(metadata={"n": "3", "odd'\"key": "0"}))
        without = client.fine_tuning.jobs.list(extra_query={"metadata": "null"})
        assert [job.id for job in without] == [bare]
        assert client.fine_tuning.jobs.retrieve(made[0]).metadata == {"n": "0", "odd'\"key": "0"}


def test_the_client_moves_a_job(server: Server) -> None:
    job_id = rows.create(server.service)
    with server.openai() as client:
        assert client.fine_tuning.jobs.pause(job_id).to_dict()["status"] == "paused"
        assert client.fine_tuning.jobs.resume(job_id).status == "validating_files"
        cancelled = client.fine_tuning.jobs.cancel(job_id)
        assert cancelled.status == "cancelled"
        assert cancelled.finished_at is not None
        with pytest.raises(openai.ConflictError) as again:
            client.fine_tuning.jobs.cancel(job_id)
    assert again.value.code == "invalid_state"
    assert "cancelled" in again.value.message
    with server.service.database.read() as session:
        assert session.scalars(select(Unit.state).where(Unit.job_id == job_id)).all() == ["cancelled"]


def test_the_client_lists_checkpoints(server: Server) -> None:
    service = server.service
    job_id = rows.create(service)
    rows.commit_stage(
        service, job_id, "warm-up", unit="propagate", facts={"steps": 60, "losses": [[1, 2.0], [60, 0.5]]}
    )
    accuracy = {"accuracy": {"value": 0.75}}
    rows.commit_stage(service, job_id, "warm-up-validation", unit="propagate", facts=accuracy)
    rows.commit_stage(service, job_id, "round-1/train", facts={"steps": 100, "losses": []})
    with server.openai() as client:
        found = list(client.fine_tuning.jobs.checkpoints.list(job_id, limit=1))
    assert [checkpoint.step_number for checkpoint in found] == [160, 60]
    assert found[1].metrics.train_loss == 0.5
    assert found[1].metrics.to_dict()["valid_accuracy"] == 0.75
    assert found[0].fine_tuned_model_checkpoint.endswith(":ckpt-step-160")
    assert found[0].id.startswith("ftckpt_")


# --- create: what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"model": "gpt-4o"}, 400, "model_not_found", "model"),
        ({"training_file": "file-none"}, 400, "invalid_training_file", "training_file"),
        ({"validation_file": "file-none"}, 400, "invalid_validation_file", "validation_file"),
        ({"semievol": {"unlabeled_file": "file-none"}}, 400, "invalid_unlabeled_file", "semievol.unlabeled_file"),
        ({"semievol": {"test_file": "file-none"}}, 400, "invalid_test_file", "semievol.test_file"),
        ({"integrations": [{"type": "wandb"}]}, 400, "unsupported_integration", "integrations"),
        ({"semievol": None, "method": {"type": "dpo", "dpo": {}}}, 400, "unsupported_method", "method.type"),
        ({"semievol": None, "method": {"type": "reinforcement"}}, 400, "unsupported_method", "method.type"),
        ({"semievol": None, "method": {"type": "semievol"}}, 400, "missing_required_parameter", "method.semievol"),
        ({"method": {"type": "supervised"}}, 400, "ambiguous_method", "semievol"),
        ({"semievol": {"roundz": 1}}, 400, "invalid_recipe", "semievol.roundz"),
        ({"semievol": {"selection": {"theta": 2}}}, 400, "invalid_recipe", "semievol.selection.theta"),
        ({"semievol": {"selection": 2}}, 400, "invalid_recipe", "semievol.selection"),
        (
            {"semievol": {"propagation": {"retriever": "/etc"}}},
            400,
            "retriever_not_allowed",
            "semievol.propagation.retriever",
        ),
        ({"semievol": {"model": {"revision": "main"}}}, 400, "not_allowed", "semievol.model.revision"),
        ({"semievol": {"model": {"device": "cpu"}}}, 400, "not_allowed", "semievol.model.device"),
        ({"suffix": "a\nb"}, 400, "invalid_suffix", "suffix"),
        ({"suffix": ""}, 422, "invalid_request", "suffix"),
        ({"suffix": "x" * 65}, 422, "invalid_request", "suffix"),
        ({"seed": -1}, 422, "invalid_request", "seed"),
        ({"seed": 2**31}, 422, "invalid_request", "seed"),
        ({"metadata": {str(n): "" for n in range(17)}}, 422, "invalid_request", "metadata"),
        ({"metadata": {"k": "v" * 513}}, 422, "invalid_request", "metadata.k"),
        ({"hyperparameters": {"n_epochs": 0}}, 422, "invalid_request", None),
        ({"surprise": 1}, 422, "invalid_request", "surprise"),
    ],
)
def test_what_makes_no_sense_is_refused(
    service: Service, changes: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    told = error(service.client.post(JOBS, json=rows.body(service) | _merged(service, changes)), status, code)
    assert param is None or told["param"] == param
    assert count(service, Job) == count(service, Request) == count(service, Unit) == 0


def _merged(service: Service, changes: dict[str, Any]) -> dict[str, Any]:
    if changes.get("semievol"):
        return changes | {"semievol": {"unlabeled_file": rows.add_file(service, "unlabeled")} | changes["semievol"]}
    return changes


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"project_id": "other"}, "no such file"),
        ({"purpose": "batch"}, "purpose is batch"),
        ({"status": "error", "status_details": "line 3: not JSON"}, "line 3"),
        ({"status": "uploaded"}, "uploaded"),
        ({"facts": {"kind": "unlabeled", "rows": 1}}, "not labeled"),
        ({"facts": None}, "not labeled"),
    ],
)
def test_a_training_file_must_be_fit(service: Service, values: dict[str, Any], word: str) -> None:
    request = rows.body(service, training_file=rows.add_file(service, **values))
    assert word in error(service.client.post(JOBS, json=request), 400, "invalid_training_file")["message"]


def test_an_unlabeled_file_may_hold_answers_beside_its_questions(service: Service) -> None:
    facts = {"kind": "labeled", "rows": 2, "answers_apart": True}
    rows.create(service, semievol={"unlabeled_file": rows.add_file(service, "labeled", facts=facts)})


def test_chats_that_end_with_a_reply_are_not_unlabeled(service: Service) -> None:
    request = rows.body(service, semievol={"unlabeled_file": rows.add_file(service, "labeled")})
    told = error(service.client.post(JOBS, json=request), 400, "invalid_unlabeled_file")
    assert "each line ends with the user's message" in told["message"]


def test_allowed_retrievers(service: Service) -> None:
    for name in ("hidden", "bm25", "my/embedder", "sentence-transformers/all-MiniLM-L6-v2"):
        job_id = rows.create(service, semievol={"propagation": {"retriever": name}})
        assert rows.job_row(service, job_id).recipe["propagation"]["retriever"] == name


def test_a_block_under_method_and_its_errors_are_named_by_path(service: Service) -> None:
    request = rows.body(service)
    request["method"] = {"type": "semievol", "semievol": request.pop("semievol") | {"rounds": 0}}
    told = error(service.client.post(JOBS, json=request), 400, "invalid_recipe")
    assert told["param"] == "method.semievol.rounds"


def test_differing_hyperparameters_are_ambiguous(service: Service) -> None:
    request = rows.body(service, semievol={}, hyperparameters={"n_epochs": 1})
    request.pop("semievol")
    request["method"] = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    error(service.client.post(JOBS, json=request), 400, "ambiguous_method")


@pytest.mark.parametrize("depth", [100, 300, 900, 5000])
@pytest.mark.parametrize("place", ["semievol", "method", "integrations"])
def test_a_deeply_nested_body_is_refused(service: Service, depth: int, place: str) -> None:
    nested = '{"a":' * depth + "1" + "}" * depth
    value = {
        "semievol": f'{{"unlabeled_file": "file-1", "selection": {nested}}}',
        "method": f'{{"type": "dpo", "dpo": {nested}}}',
        "integrations": f"[{nested}]",
    }[place]
    text = f'{{"model": "tiny", "training_file": "file-1", "{place}": {value}}}'
    headers = {"Content-Type": "application/json"}
    for path in (JOBS, f"{JOBS}/validate"):
        answer = service.client.post(path, content=text, headers=headers)
        if path == JOBS:
            assert answer.status_code in {400, 422}, answer.text
            assert answer.json()["error"]["code"]
        else:
            assert answer.status_code in {200, 400, 422}, answer.text


def test_a_job_keeps_what_it_needs_of_its_files(service: Service) -> None:
    job = rows.job_row(service, rows.create(service, seed=None))
    assert set(job.inputs) == {"labeled", "unlabeled"}
    with service.database.read() as session:
        file = session.get_one(File, job.inputs["labeled"]["file"])
    assert job.inputs["labeled"] == {
        "file": file.id,
        "filename": file.filename,
        "sha256": file.sha256,
        "bytes": file.bytes,
    }
    assert 0 <= job.seed < 2**31
    assert job.request_id
    assert job.model_source["source"].endswith("tiny")
    assert job.method == "semievol"


def test_a_broken_recipe_of_the_model_is_the_operators_business(service: Service, tmp_path: Path) -> None:
    (tmp_path / "tiny" / MODEL_RECIPE).write_text("nonsense: 1\n")
    told = error(service.client.post(JOBS, json=rows.body(service)), 503, "model_misconfigured")
    assert str(tmp_path) not in told["message"]


# --- create: once -----------------------------------------------------------------------------------------------------


def test_the_same_create_again_gets_the_first_job(service: Service) -> None:
    request = rows.body(service)
    first = service.client.post(JOBS, json=request).json()["id"]
    assert service.client.post(JOBS, json=dict(reversed(request.items()))).json()["id"] == first
    assert service.user.post(JOBS, json=request).json()["id"] != first
    assert service.client.post(JOBS, json=request | {"seed": 1}).json()["id"] != first
    service.client.post(f"{JOBS}/{first}/cancel")
    assert service.client.post(JOBS, json=request).json()["id"] != first


def test_the_same_create_much_later_is_a_new_job(service: Service) -> None:
    request = rows.body(service)
    first = service.client.post(JOBS, json=request).json()["id"]
    with service.database.write() as session:
        session.execute(update(Request).values(created_at=Request.created_at - 301))
    assert service.client.post(JOBS, json=request).json()["id"] != first


def test_idempotency_keys_are_exact(service: Service) -> None:
    request = rows.body(service)

    def post(key: str, **changes: Any) -> Any:
        return service.client.post(JOBS, json=request | changes, headers={"Idempotency-Key": key})

    first = post("a").json()["id"]
    assert post("a").json()["id"] == first
    assert post("b").json()["id"] != first
    assert service.client.post(JOBS, json=request).json()["id"] not in {first, post("b").json()["id"]}
    error(post("a", seed=3), 422, "idempotency_key_reused")
    service.client.post(f"{JOBS}/{first}/cancel")
    assert post("a").json()["status"] == "cancelled"
    error(post("k" * 256), 400, "invalid_idempotency_key")
    error(post(""), 400, "invalid_idempotency_key")


def test_a_retry_gets_its_job_even_if_the_file_is_gone(service: Service) -> None:
    request = rows.body(service)
    first = service.client.post(JOBS, json=request).json()["id"]
    rows.finish_job(service, first)
    assert service.client.delete(f"/v1/files/{request['training_file']}").status_code == 200
    assert service.client.post(JOBS, json=request).json()["id"] == first


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "same"}])
def test_racing_creates_make_one_job(server: Server, headers: dict[str, str]) -> None:
    request = rows.body(server.service)
    found: list[str] = []

    def post() -> None:
        with server.openai() as client:
            found.append(client.fine_tuning.jobs.create(**request_for(request), extra_headers=headers).id)

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert count(server.service, Job) == count(server.service, Unit) == 1


def request_for(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": body["model"],
        "training_file": body["training_file"],
        "extra_body": {"semievol": body["semievol"]},
    }


def test_a_project_has_a_quota(service: Service) -> None:
    with service.database.write() as session:
        session.execute(update(Project).where(Project.id == PROJECT).values(max_active_jobs=2))
    first = rows.create(service)
    rows.create(service)
    error(service.client.post(JOBS, json=rows.body(service)), 429, "too_many_jobs")
    service.client.post(f"{JOBS}/{first}/cancel")
    rows.create(service)


def test_the_bell_rings_after_the_commit(settings: Settings) -> None:
    bell = RecordingBell()
    with open_service(settings, bell=bell) as service:
        request = rows.body(service)
        job_id = service.client.post(JOBS, json=request).json()["id"]
        assert bell.rings == [{"cpu"}]
        service.client.post(JOBS, json=request)
        service.client.post(JOBS, json=request | {"model": "no"})
        assert len(bell.rings) == 1
        service.client.post(f"{JOBS}/{job_id}/pause")
        service.client.post(f"{JOBS}/{job_id}/resume")
        assert bell.rings[1:] == [{"cpu", "gpu"}]


# --- read and move ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("GET", "/events"),
        ("GET", "/events?stream=true"),
        ("GET", "/checkpoints"),
        ("GET", "/pseudo_labels"),
        ("POST", "/review/complete"),
        ("GET", "/adapter"),
        ("GET", "/adapter/adapter_config.json"),
        ("GET", "/report"),
    ],
)
def test_another_projects_job_is_not_there(service: Service, method: str, path: str) -> None:
    job_id = rows.create(service)
    told = error(service.other.request(method, f"{JOBS}/{job_id}{path}"), 404, "job_not_found")
    unknown = error(service.client.request(method, f"{JOBS}/ftjob-none{path}"), 404, "job_not_found")
    assert told["type"] == unknown["type"] == "invalid_request_error"
    assert service.anonymous.request(method, f"{JOBS}/{job_id}{path}").status_code == 401


def test_lists_refuse_what_is_no_page(service: Service) -> None:
    error(service.client.get(f"{JOBS}?after=ftjob-none"), 400, "invalid_after")
    error(service.client.get(f"{JOBS}?metadata=null&metadata[a]=b"), 400, "invalid_metadata")
    error(service.client.get(f"{JOBS}?limit=0"), 422, "invalid_request")
    assert service.client.get(JOBS).json() == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


def test_moves_that_are_not_open_are_conflicts(service: Service) -> None:
    job_id = rows.create(service)
    answer = service.client.post(f"{JOBS}/{job_id}/resume")
    assert "validating_files" in error(answer, 409, "invalid_state")["message"]
    assert answer.headers["x-should-retry"] == "false"
    service.client.post(f"{JOBS}/{job_id}/pause")
    error(service.client.post(f"{JOBS}/{job_id}/pause"), 409, "invalid_state")
    rows.finish_job(service, job_id, "failed", error={"code": "invalid_file", "message": "bad", "param": None})
    error(service.client.post(f"{JOBS}/{job_id}/cancel"), 409, "invalid_state")
    assert service.client.get(f"{JOBS}/{job_id}").json()["error"] == {
        "code": "invalid_file",
        "message": "bad",
        "param": None,
    }


def test_a_running_job_shows_how_far_it_is(service: Service) -> None:
    job_id = rows.create(service, semievol={"review": True})
    url = f"{JOBS}/{job_id}"
    rows.start_job(service, job_id)
    overlaps = {"left_out": [{"role": "labeled", "also_in": "test", "rows": 1, "lines": [4]}]}
    rows.commit_stage(
        service, job_id, "prepare", facts={"rows": {"labeled": 9}, "overlaps": overlaps, "inputs": {"seed": 1}}
    )
    seen = [service.client.get(url).json()["semievol"]["progress"]]
    accuracy = {"value": 0.5, "lower": 0.4, "upper": 0.6}
    rows.commit_stage(service, job_id, "base", unit="propagate", facts={"accuracy": accuracy})
    rows.set_unit(service, job_id, "propagate", state="running", stage="warm-up", done=30, total=60, started_at=5.0)
    told = service.client.get(url).json()["semievol"]
    seen.append(told["progress"])
    assert told["stage"] == "warm-up"
    assert told["metrics"] == {"base": accuracy}
    assert [(stage["name"], stage["state"], stage["done"]) for stage in told["stages"]] == [
        ("prepare", "done", 1),
        ("base", "done", 1),
        ("warm-up", "running", 30),
    ]
    assert [(stage["label"], stage["unit_of_count"]) for stage in told["stages"]] == [
        ("Check the files", None),
        ("Measure the base model", None),
        ("Fine-tune on the labels (SFT)", "steps"),
    ]
    assert told["stages"][0]["facts"] == {"rows": {"labeled": 9}, "overlaps": overlaps}
    rows.set_unit(service, job_id, "propagate", state="done")
    for number in range(12):
        state = "done" if number < 6 else "running" if number == 6 else "ready"
        name = f"round-1/generate-{number:05d}"
        rows.set_unit(service, job_id, name, state=state, done=5, total=10 if state == "running" else 0)
        if state == "done":
            rows.commit_stage(service, job_id, name)
    told = service.client.get(url).json()["semievol"]
    seen.append(told["progress"])
    assert told["stages"][-1]["name"] == told["stage"] == "round-1/generate"
    assert (told["stages"][-1]["done"], told["stages"][-1]["total"], told["round"]) == (6, 12, 1)
    assert (told["stages"][-1]["label"], told["stages"][-1]["unit_of_count"]) == ("Generate answers", "shards")
    for number in range(12):
        rows.set_unit(service, job_id, f"round-1/generate-{number:05d}", state="done")
    rows.set_unit(service, job_id, "round-1/review", "cpu", state="waiting")
    told = service.client.get(url).json()["semievol"]
    seen.append(told["progress"])
    assert told["review"] == {"needed": True, "waiting": True}
    assert told["estimated_finish"] is None
    rows.finish_job(service, job_id, fine_tuned_model="ft:tiny:x:1", trained_tokens=7)
    done = service.client.get(url).json()
    seen.append(done["semievol"]["progress"])
    assert seen == sorted(set(seen))
    assert seen[-1] == 1
    assert (done["fine_tuned_model"], done["trained_tokens"], done["status"]) == ("ft:tiny:x:1", 7, "succeeded")


def test_an_estimate_comes_once_something_is_known(service: Service) -> None:
    job_id = rows.create(service)
    rows.start_job(service, job_id)
    assert service.client.get(f"{JOBS}/{job_id}").json()["estimated_finish"] is None
    job = rows.job_row(service, job_id)
    rows.set_job(service, job_id, started_at=job.created_at - 100)
    rows.set_unit(service, job_id, "propagate", state="done")
    told = service.client.get(f"{JOBS}/{job_id}").json()
    assert told["estimated_finish"] == told["semievol"]["estimated_finish"] > job.created_at


def test_result_files_are_listed(service: Service) -> None:
    job_id = rows.create(service)
    ids = [rows.add_file(service, job_id=job_id, purpose="fine-tune-results") for _ in range(2)]
    assert service.client.get(f"{JOBS}/{job_id}").json()["result_files"] == ids
    assert service.client.get(JOBS).json()["data"][0]["result_files"] == ids


def test_a_job_is_read_with_few_queries(service: Service) -> None:
    job_ids = [rows.create(service) for _ in range(3)]
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "api_keys" not in statement and statement.startswith("SELECT"):
            asked.append(statement)

    event.listen(service.database.engine, "before_cursor_execute", note)
    try:
        service.client.get(f"{JOBS}/{job_ids[0]}")
        assert len(asked) == 1
        asked.clear()
        assert len(service.client.get(JOBS).json()["data"]) == 3
        assert len(asked) == 2
    finally:
        event.remove(service.database.engine, "before_cursor_execute", note)


# --- validate ---------------------------------------------------------------------------------------------------------


def chats(questions: str, replies: str = "") -> str:
    """Chat JSONL: a row for each letter, and its reply where there are replies."""
    lines = []
    for place, question in enumerate(questions):
        turns = [{"role": "user", "content": f"question {question}"}]
        turns += [{"role": "assistant", "content": replies[place]}] if replies else []
        lines.append(json.dumps({"messages": turns}) + "\n")
    return "".join(lines)


def test_validation_starts_and_stores_nothing(service: Service) -> None:
    labeled = rows.add_file(service, content=chats("abcd", "xyxy"))
    told = service.client.post(f"{JOBS}/validate", json=rows.body(service, training_file=labeled)).json()
    assert (told["object"], told["valid"], told["errors"]) == ("fine_tuning.job.validation", True, [])
    assert told["files"]["labeled"]["rows"] == 4
    assert told["recipe"]["warmup"]["steps"] == 10
    assert told["answers"] == {"kind": "choice", "options": ["x", "y"], "mix": {"x": 2, "y": 2}}
    assert told["loss_mask"][0] == [
        {"role": "user", "text": "question a", "trained": False, "tokens": None},
        {"role": "assistant", "text": "x", "trained": True, "tokens": None},
    ]
    assert told["token_lengths"] is None
    assert any("tokenizer.json" in note for note in told["notes"])
    assert count(service, Job) == count(service, Request) == 0
    assert not list((service.settings.data / "staging").iterdir())


def test_validation_reads_csv_and_tells_what_several_files_hold(service: Service) -> None:
    csv = "question,answer\n" + "".join(f"question {letter},{reply}\n" for letter, reply in ("ax", "by", "cx", "dy"))
    files = {
        "training_file": rows.add_file(service, content=csv, filename="labeled.csv"),
        "validation_file": rows.add_file(service, content=chats("bef", "yxx")),
        "semievol": {"unlabeled_file": rows.add_file(service, "unlabeled", chats("aegg"))},
    }
    told = service.client.post(f"{JOBS}/validate", json=rows.body(service, **files)).json()
    assert (told["valid"], told["answers"]["mix"]) == (True, {"x": 2, "y": 1})
    left_out = [(one["role"], one["also_in"], one["rows"], one["lines"]) for one in told["overlaps"]["left_out"]]
    assert left_out == [
        ("labeled", "validation", 1, [3]),
        ("unlabeled", "validation", 1, [2]),
        ("unlabeled", "labeled", 1, [1]),
    ]
    assert [(one["role"], one["rows"]) for one in told["overlaps"]["repeated"]] == [("unlabeled", 1)]
    assert told["loss_mask"][0][1] == {"role": "assistant", "text": "x", "trained": True, "tokens": None}
    assert any("1 labeled row (line 3) also in the validation file" in note for note in told["notes"])


def test_validation_tells_what_would_end_the_job(service: Service) -> None:
    """All files, each with its place in the request."""
    files = {
        "training_file": rows.add_file(service, content=chats("abcd", "xyxy")),
        "validation_file": rows.add_file(service, content=chats("ef", "xz"), filename="checks.jsonl"),
        "semievol": {"unlabeled_file": rows.add_file(service, "unlabeled", chats("aab"))},
    }
    told = service.client.post(f"{JOBS}/validate", json=rows.body(service, **files)).json()
    assert told["valid"] is False
    assert [(one["param"], one["code"]) for one in told["errors"]] == [
        ("validation_file", "invalid_validation_file"),
        ("semievol.unlabeled_file", "invalid_unlabeled_file"),
    ]
    assert "checks.jsonl cannot be used:\n  line 2: " in told["errors"][0]["message"]
    assert "3 in the labeled file" in told["errors"][1]["message"]


def test_validation_looks_at_the_beginning_of_large_files(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.services.validation.SAMPLE_BYTES", 500)
    labeled = rows.add_file(service, content=chats("abcdefghij" * 3, "xyxyxyxyxy" * 3))
    pool = rows.add_file(service, "unlabeled", chats("a" * 30 + "k"))
    told = service.client.post(
        f"{JOBS}/validate", json=rows.body(service, training_file=labeled, semievol={"unlabeled_file": pool})
    ).json()
    assert (told["valid"], told["errors"]) == (True, [])
    assert told["answers"]["options"] == ["x", "y"]
    assert any("labeled.jsonl and unlabeled.jsonl" in note for note in told["notes"])
    assert any("no row is left" in note for note in told["notes"])


def test_validation_measures_with_the_models_tokenizer(service: Service, tmp_path: Path) -> None:
    demo = Path(__file__).parents[2] / "demo" / "base" / "tokenizer.json"
    (tmp_path / "tiny" / "tokenizer.json").write_bytes(demo.read_bytes())
    (tmp_path / "tiny" / MODEL_RECIPE).write_text("warmup: {epochs: 3}\n")
    text = "".join(
        f'{{"messages": [{{"role": "user", "content": "{"word " * n}"}}, {{"role": "assistant", "content": "x"}}]}}\n'
        for n in range(1, 11)
    )
    request = rows.body(service, training_file=rows.add_file(service, content=text))
    told = service.client.post(f"{JOBS}/validate", json=request).json()
    lengths = told["token_lengths"]["labeled"]
    assert lengths["rows"] == 10
    assert 1 <= lengths["p50"] <= lengths["p90"] <= lengths["p99"] <= lengths["max"]
    framed = lengths["mean"] + 2 * FRAME_TOKENS
    # One of the ten rows is held out, and the sample's mean is that of the nine but for it.
    assert told["estimate"]["stages"]["warm-up"]["tokens"] == pytest.approx(framed * 9 * 3, rel=0.2)
    question, reply = told["loss_mask"][1]
    assert "".join(question["tokens"]) == question["text"] == "word word "
    assert len(question["tokens"]) > 1
    assert reply["tokens"] == ["x"]


def finished(service: Service, request: dict[str, Any], seconds: float, status: str = "succeeded") -> None:
    """A job that ended so, each stage of which took so long."""
    answer = service.client.post(JOBS, json=request, headers={"Idempotency-Key": f"{seconds} {status}"})
    job_id = answer.json()["id"]
    rows.start_job(service, job_id)
    answers = {"kind": "choice", "options": ["x", "y"], "tolerance": 0.01, "bare": True}
    counts = {"labeled": 9, "unlabeled": 0, "validation": 1, "test": 0}
    rows.commit_stage(service, job_id, "prepare", facts={"answers": answers, "rows": counts}, seconds=0.1)
    told = {"prompt_tokens": 10, "tokens": 2, "engine": "huggingface"}
    for name in ("base", "warm-up-validation", "sft-test"):
        rows.commit_stage(service, job_id, name, facts=told, seconds=seconds)
    trained = {"steps": 4, "rows": 9, "tokens": 90}
    rows.commit_stage(service, job_id, "warm-up", facts=trained, seconds=seconds)
    rows.finish_job(service, job_id, status)


def test_estimates_learn_from_the_jobs_that_finished(service: Service, tmp_path: Path) -> None:
    (tmp_path / "tiny" / "config.json").write_text((DEMO / "config.json").read_text())
    labeled = rows.add_file(service, content=chats("abcdefghij", "xyxyxyxyxy"))
    request = {"model": "tiny", "training_file": labeled, "method": {"type": "supervised"}, "seed": 1}

    def estimate() -> dict[str, Any]:
        told: dict[str, Any] = service.client.post(f"{JOBS}/validate", json=request).json()["estimate"]
        return told

    before = estimate()
    assert (before["learned_from"], [*before["stages"]]) == (
        0,
        ["prepare", "base", "warm-up", "warm-up-validation", "sft-test"],
    )
    finished(service, request, 1000.0, "failed")
    assert estimate() == before
    for number in range(3):
        finished(service, request, 500.0 + number)
    after = estimate()
    assert after["learned_from"] == 3
    assert after["seconds"] > 100 * before["seconds"]
    assert after["stages"]["base"]["seconds"] == pytest.approx(500, rel=0.5)
    assert after["tokens"] == before["tokens"]
    assert after["gpu_memory_bytes"] == before["gpu_memory_bytes"] > 1024**3
    with service.database.write() as session:  # a stage that began anew took longer than its last attempt
        session.execute(update(Unit).values(attempts=2))
    assert estimate()["learned_from"] == 0


def test_jobs_of_earlier_versions_are_no_trouble_to_an_estimate(service: Service) -> None:
    labeled = rows.add_file(service, content=chats("abcdefghij", "xyxyxyxyxy"))
    request = {"model": "tiny", "training_file": labeled, "method": {"type": "supervised"}, "seed": 1}
    finished(service, request, 5.0)
    with service.database.write() as session:
        session.execute(update(Job).values(recipe={"of": "old"}))
    told = service.client.post(f"{JOBS}/validate", json=request).json()["estimate"]
    assert (told["learned_from"], told["seconds"], told["gpu_memory_bytes"]) == (0, None, None)


@pytest.mark.parametrize("text", ["", " two  words \n", "naïve 🐈‍⬛ 漢字 \u0301\u200b"])
def test_tokens_put_together_are_the_text(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(Path(__file__).parents[2] / "demo" / "base" / "tokenizer.json"))
    (turn,) = segments([Message("user", text)], tokenizer)
    assert turn.tokens is not None
    assert "".join(turn.tokens) == text
    assert all(turn.tokens)


@pytest.mark.parametrize(
    ("text", "ends", "cut"),
    [
        ("", [], []),
        ("ab cd", [2, 5], ["ab", " cd"]),
        ("é!", [1, 1, 2], ["é", "!"]),  # two tokens are one character
        ("ab  ", [1, 2], ["a", "b  "]),
        ("  ", [], ["  "]),
        ("abc", [2, 1, 3], ["ab", "c"]),
    ],
)
def test_texts_are_cut_where_tokens_end(text: str, ends: list[int], cut: list[str]) -> None:
    assert pieces(text, ends) == cut


def test_validation_reports_instead_of_refusing(service: Service) -> None:
    problems = [{"line": 3, "code": "not_json", "message": "not JSON"}]
    bad = rows.add_file(service, status="error", status_details="line 3", facts={"problems": problems})
    told = service.client.post(f"{JOBS}/validate", json=rows.body(service, training_file=bad)).json()
    assert told["valid"] is False
    assert [one["code"] for one in told["errors"]] == ["invalid_training_file"]
    assert told["files"]["labeled"]["problems"] == problems
    told = service.client.post(f"{JOBS}/validate", json=rows.body(service, semievol={"rounds": 99})).json()
    assert told["errors"][0]["code"] == "invalid_recipe"

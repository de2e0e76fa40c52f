"""What led to a pseudo-label, read from files as real stages leave them, and the summaries of rounds and shards."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from semievol.fakes import FakeBackend, FakeObserver
from semievol.pipeline import Job, run
from semievol.recipe import Recipe
from semievol.tables import ANSWERED, read_rows, write_rows
from store.models import StageRow
from tests.api import rows
from tests.api.service import Service
from tests.tickets import tickets, write_labeled, write_unlabeled
from worker.commits import _labels

JOBS = "/v1/fine_tuning/jobs"
SAMPLED: dict[str, Any] = {
    "generation": {"answers": "sampled", "temperature": 2.0, "worked_examples": "varied", "shard_size": 8}
}
SCORED: dict[str, Any] = {"generation": {"shard_size": 8}}


class Done:
    """A run over doubles, its stages committed to a job of the service as far as asked for."""

    def __init__(self, service: Service, folder: Path, *, review: bool = False, gaps: int = 0, **layer: Any) -> None:
        self.service = service
        labeled = write_labeled(folder / "labeled.jsonl", tickets(24, 1, known=3))
        unlabeled = write_unlabeled(folder / "unlabeled.jsonl", [question for question, _ in tickets(30, 2)])
        unlabeled.write_text(unlabeled.read_text().replace("\n", "\n" * (1 + gaps)))
        job = Job("fake", labeled, unlabeled, Recipe.resolve(layer), review=review)
        run(job, FakeBackend(), folder / "out", FakeObserver())
        self.stages = folder / "out" / "stages"
        self.job_id = rows.create(service, semievol={"review": review, **layer})
        rows.start_job(service, self.job_id)
        self.url = f"{JOBS}/{self.job_id}/pseudo_labels"

    def commit(self, *names: str) -> None:
        """As a worker commits them."""
        for name in names:
            manifest = json.loads((self.stages / name / "manifest.json").read_text())
            files = {path: (self.stages / name / path).read_bytes() for path in manifest["files"]}
            rows.commit_stage(self.service, self.job_id, name, facts=manifest["facts"], files=files)
            if name.endswith("/select"):
                labels = list(_labels(self.stages / name / "decided.parquet"))
                rows.load_labels(self.service, self.job_id, labels, int(name.split("/")[0].removeprefix("round-")))

    def decide(self, number: int = 1) -> None:
        """All that a round needs to be decided."""
        self.commit(*(["prepare"] if number == 1 else []), *self.shards(number), f"round-{number}/select")

    def shards(self, number: int = 1) -> list[str]:
        return sorted(path.relative_to(self.stages).as_posix() for path in self.stages.glob(f"round-{number}/gen*"))

    def decided(self, name: str = "round-1/select") -> dict[int, dict[str, Any]]:
        return {row["line"]: row for row in read_rows(self.stages / name / "decided.parquet")}

    def get(self, path: str = "", **query: Any) -> Any:
        answer = self.service.client.get(f"{self.url}{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(params=[SCORED, SAMPLED], ids=["scored", "sampled"])
def done(request: pytest.FixtureRequest, service: Service, tmp_path: Path) -> Done:
    made = Done(service, tmp_path, **request.param)
    made.decide()
    return made


# --- one row ----------------------------------------------------------------------------------------------------------


def test_a_row_tells_all_that_led_to_its_decision(done: Done) -> None:
    labeled = {row["id"]: row for row in read_rows(done.stages / "prepare" / "train.parquet")}
    justified = 0
    for line, record in done.decided().items():
        told = done.get(f"/{line}")
        [listed] = done.get("", after=line - 1, limit=1)["data"]
        assert {name: told[name] for name in listed} == listed
        assert told["messages"] == [{"role": "user", "content": record["messages"][0]["content"]}]
        asked = [*record["trials"], *([record["justification"]] if record["justification"] else [])]
        views = [*told["trials"], *([told["justification"]] if told["justification"] else [])]
        justified += told["justification"] is not None
        assert len(views) == len(asked) > 3
        for trial, view in zip(asked, views, strict=True):
            check_trial(view, trial, told["options"], labeled)
    assert justified


def check_trial(view: dict[str, Any], trial: dict[str, Any], options: Any, labeled: dict[str, Any]) -> None:
    assert (view["collaborator"], view["seed"]) == (trial["collaborator"], str(trial["seed"]))
    assert (view["reply"], view["answer"]) == (trial["reply"], trial["answer"])
    assert view["tokens"] == [
        {"text": text, "logprob": value} for text, value in zip(trial["tokens"], trial["logprobs"], strict=True)
    ]
    assert view["entropy"] == pytest.approx(-math.fsum(trial["logprobs"]) / len(trial["logprobs"]))
    if trial["option_logprobs"] is None:
        assert view["options"] is None
        assert view["tokens"][-1]["text"] == "<end>"
    else:
        assert [one["option"] for one in view["options"]] == options
        assert [one["logprob"] for one in view["options"]] == trial["option_logprobs"]
        assert view["tokens"][0]["text"] == view["answer"]
    assert [one["id"] for one in view["worked_examples"]] == trial["worked_examples"]
    assert view["worked_examples"]
    for one in view["worked_examples"]:
        row = labeled[one["id"]]
        assert (one["question"], one["answer"]) == (row["messages"][-1]["content"], row["reply"])


def test_a_row_that_was_asked_twice_tells_of_its_last_round(service: Service, tmp_path: Path) -> None:
    done = Done(service, tmp_path, rounds=2, selection={"theta": 0.5}, **SAMPLED)
    done.decide()
    again = done.decided("round-2/select")
    line = next(iter(again))
    first = done.get(f"/{line}")["trials"]
    done.decide(2)
    second = done.get(f"/{line}")
    assert second["round"] == 2
    assert [one["seed"] for one in second["trials"]] == [str(one["seed"]) for one in again[line]["trials"]]
    assert {one["seed"] for one in first}.isdisjoint(one["seed"] for one in second["trials"])


def test_rows_are_found_although_lines_are_missing(service: Service, tmp_path: Path) -> None:
    """Only every third line of the file holds a row that is asked."""
    done = Done(service, tmp_path, gaps=2, **SCORED)
    done.decide()
    decided = done.decided()
    assert len(decided) == 30
    assert max(decided) == 88
    for line, record in decided.items():
        assert done.get(f"/{line}")["trials"][0]["seed"] == str(record["trials"][0]["seed"])


def test_a_row_too_long_for_the_model_has_no_trials(service: Service, tmp_path: Path) -> None:
    done = Done(service, tmp_path, **SCORED)
    done.decide()
    answer_anew(done, {**done.decided()[1], "trials": [], "justification": None})
    told = done.get("/1")
    assert (told["trials"], told["justification"]) == ([], None)


def test_rows_of_versions_that_kept_no_tokens_still_tell_the_rest(service: Service, tmp_path: Path) -> None:
    done = Done(service, tmp_path, **SAMPLED)
    done.decide()
    record = done.decided()[1]
    trials = [{**trial, "tokens": None, "logprobs": [-1.0, -math.inf]} for trial in record["trials"]]
    answer_anew(done, {**record, "trials": trials})
    trial = done.get("/1")["trials"][0]
    assert trial["tokens"] == [{"text": None, "logprob": -1.0}, {"text": None, "logprob": None}]
    assert trial["entropy"] is None


def answer_anew(done: Done, record: dict[str, Any]) -> None:
    """Another file in the place of that of the row's shard."""
    path = done.stages / "other.parquet"
    write_rows(path, ANSWERED, [{name: record[name] for name in ANSWERED.names}], 1)
    change_shard(done, record, files={"answered.parquet": rows.put_object(done.service, path.read_bytes())})


def change_shard(done: Done, record: dict[str, Any], **values: Any) -> None:
    with done.service.database.write() as session:
        stage = session.get_one(StageRow, (done.job_id, f"round-1/generate-{record['shard']:05d}"))
        for name, value in values.items():
            setattr(stage, name, value)


@pytest.mark.parametrize(("row", "status", "code"), [(999, 404, "pseudo_label_not_found"), (0, 422, "invalid_request")])
def test_rows_that_are_not_there(done: Done, row: int, status: int, code: str) -> None:
    answer = done.service.client.get(f"{done.url}/{row}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert done.service.other.get(f"{done.url}/1").json()["error"]["code"] == "job_not_found"


def test_a_row_of_which_nothing_is_known_says_so(done: Done) -> None:
    rows.load_labels(done.service, done.job_id, [rows.label(998), rows.label(999, shard=1), rows.label(1000, shard=99)])
    for line in (998, 999, 1000):  # without a shard, as earlier versions wrote them; not in it; no such shard
        answer = done.service.client.get(f"{done.url}/{line}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "trials_not_found")


# --- all of them ------------------------------------------------------------------------------------------------------


def test_a_job_that_has_not_begun_has_nothing_to_sum_up(service: Service) -> None:
    job_id = rows.create(service)
    told = service.client.get(f"{JOBS}/{job_id}/pseudo_labels/summary").json()
    assert told == {
        "object": "fine_tuning.job.pseudo_labels.summary",
        "state": "none",
        "round": 0,
        "rows": 0,
        "total": None,
        "outcomes": {},
        "decisions": {},
        "reasons": {},
        "answers": {},
        "entropy": {"bin_nats": 0.1, "outcomes": {}},
        "certainty": None,
        "curve": [],
        "review": {
            "rows": 0,
            "accept": {"kept": 0, "changed": 0},
            "reject": {"kept": 0, "changed": 0},
            "precision": None,
        },
    }


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "backwards"])
def test_shards_are_summed_up_as_they_come(service: Service, tmp_path: Path, order: int) -> None:
    done = Done(service, tmp_path, **SAMPLED)
    done.commit("prepare")
    assert (done.get("/summary")["state"], done.get("/summary")["total"]) == ("none", 30)
    seen = 0
    for name in done.shards()[::order]:
        done.commit(name)
        told = done.get("/summary")
        seen += json.loads((done.stages / name / "manifest.json").read_text())["facts"]["rows"]
        assert (told["state"], told["round"], told["rows"], told["total"]) == ("generating", 1, seen, 30)
        assert sum(told["outcomes"].values()) == seen
    assert done.get("/summary") == told
    assert set(told["outcomes"]) <= {"consistent", "differed", "unparsable"}
    for outcome, counts in told["entropy"]["outcomes"].items():
        assert len(counts) == 30
        assert sum(counts) == told["outcomes"][outcome]
    done.commit("round-1/select")
    assert done.get("/summary")["outcomes"]["consistent"] == told["outcomes"]["consistent"]


def test_a_decided_round_is_summed_up(done: Done) -> None:
    told, decided = done.get("/summary"), done.decided()
    assert (told["state"], told["round"], told["rows"], told["total"]) == ("decided", 1, 30, 30)
    for column in ("decision", "reason", "outcome"):
        values = [row[column] for row in decided.values()]
        assert told[f"{column}s"] == {value: values.count(value) for value in sorted(set(values))}
    answered = [row for row in decided.values() if row["answer"] is not None]
    certainties = told["certainty"]["outcomes"]
    for outcome, sides in certainties.items():
        for side, counts in sides.items():
            mine = [row for row in answered if (row["outcome"], row["decision"]) == (outcome, side)]
            assert (len(counts), sum(counts)) == (20, len(mine))
    assert {name: sum(counts) for name, counts in told["entropy"]["outcomes"].items()} == {
        name: sum(map(sum, sides.values())) for name, sides in certainties.items()
    }
    assert told["curve"][-1][0] == 1.0
    assert sum(told["answers"].values()) == told["decisions"]["accept"]
    assert told["review"]["precision"] is None


def test_rows_of_several_rounds_count_once(service: Service, tmp_path: Path) -> None:
    done = Done(service, tmp_path, rounds=2, selection={"theta": 0.5}, **SCORED)
    done.decide()
    first = done.get("/summary")
    done.decide(2)
    told = done.get("/summary")
    assert (told["round"], told["rows"]) == (2, 30)
    again = done.decided("round-2/select").values()
    accepted = sum(row["decision"] == "accept" for row in again)
    assert told["decisions"] == {
        "accept": first["decisions"]["accept"] + accepted,
        "reject": len(again) - accepted,
    }
    counted = [sum(counts) for sides in told["certainty"]["outcomes"].values() for counts in sides.values()]
    assert sum(counted) == 30


def test_the_review_tells_how_many_are_right_while_it_goes_on(service: Service, tmp_path: Path) -> None:
    done = Done(service, tmp_path, review=True, **SAMPLED)
    done.decide()
    rows.set_unit(service, done.job_id, "round-1/review", "cpu", state="waiting")
    decided = done.decided()
    taken = [line for line, row in decided.items() if row["decision"] == "accept"]
    turned_down = [line for line, row in decided.items() if row["decision"] == "reject" and row["answer"]]

    def edit(line: int, **values: str) -> dict[str, Any]:
        assert service.client.patch(f"{done.url}/{line}", json=values).status_code == 200
        review: dict[str, Any] = done.get("/summary")["review"]
        return review

    assert edit(turned_down[0], decision="reject")["precision"] is None
    review = edit(taken[0], decision="accept")
    assert (review["rows"], review["accept"], review["reject"]) == (
        2,
        {"kept": 1, "changed": 0},
        {"kept": 0, "changed": 1},
    )
    high = review["precision"]
    assert 0 <= high["low"] < high["value"] <= high["high"] <= 1
    wrong = edit(taken[1], decision="reject")["precision"]
    assert wrong["value"] < high["value"]
    for line in taken[1:]:
        review = edit(line, answer="billing")
    corrected = [line for line in taken[2:] if decided[line]["answer"] != "billing"]
    assert review["accept"]["kept"] == 1 + len(taken[2:]) - len(corrected)
    assert review["precision"]["value"] == review["precision"]["low"] == 1.0  # a person saw all that is trained on


def test_rounds_of_versions_without_a_summary_tell_their_counts(service: Service, tmp_path: Path) -> None:
    done = Done(service, tmp_path, **SCORED)
    (done.stages / "round-1" / "select" / "summary.json").unlink()
    manifest = done.stages / "round-1" / "select" / "manifest.json"
    told = json.loads(manifest.read_text())
    del told["files"]["summary.json"]
    manifest.write_text(json.dumps(told))
    done.decide()
    found = done.get("/summary")
    assert found["decisions"] == told["facts"]["decisions"]
    assert (found["certainty"], found["curve"], found["entropy"]["outcomes"]) == (None, [], {})


# --- orders -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(service: Service) -> str:
    job_id = rows.create(service)
    labels = [rows.label(line, confidence=None if line % 5 == 0 else line * 7 % 11 / 10) for line in range(1, 41)]
    rows.load_labels(service, job_id, labels)
    return f"{JOBS}/{job_id}/pseudo_labels"


@pytest.mark.parametrize("order", ["confidence", "-confidence", "entropy", "-entropy", "line"])
def test_pages_and_exports_in_an_order(service: Service, listed: str, order: str) -> None:
    seen, after = list[int](), 0
    while True:
        page = service.client.get(listed, params={"order": order, "after": after, "limit": 7}).json()
        seen += [label["line"] for label in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    exported = service.client.get(listed, params={"order": order, "format": "ndjson"}).text.splitlines()
    assert [json.loads(line)["line"] for line in exported] == seen
    assert sorted(seen) == list(range(1, 41))
    if order.endswith("confidence"):
        assert sorted(line for line in range(5, 41, 5)) == seen[-8:]


def test_an_order_by_value_goes_on_after_a_row_that_is_there(service: Service, listed: str) -> None:
    answer = service.client.get(listed, params={"order": "-confidence", "after": 41})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_after")
    assert service.client.get(listed, params={"after": 41}).json()["data"] == []
    answer = service.client.get(listed, params={"order": "vote_share"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")


def test_reviewed_rows_and_outcomes_can_be_asked_for(service: Service, listed: str) -> None:
    assert service.client.get(listed, params={"reviewed": True}).json()["data"] == []
    assert len(service.client.get(listed, params={"reviewed": False}).json()["data"]) == 40
    assert service.client.get(listed, params={"outcome": "majority"}).json()["data"] == []
    assert len(service.client.get(listed, params={"outcome": "consistent"}).json()["data"]) == 40

"""A person with a browser and three files: from signing in to the adapter, with everything that may come between."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from demo.generate import draw, write
from demo.tasks import HELPDESK
from tests.deployments import JOBS, RECIPE, Deployment, input_files

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {**RECIPE, "evolution": {**RECIPE["evolution"], "steps": 8}}
"""Less training than other tests ask for: here it only has to be seen."""
ROWS = 25
"""Labels of a page."""
JOB_MS = 240_000
"""How long a job may take on a busy machine."""
FAST_KEYS = """async (keys) => {
  for (const key of keys) {
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    await Promise.resolve();
  }
}"""
"""Keys so fast after each other that the browser neither paints nor hears from the service in between."""


def start(page: Page, files: dict[str, Path], *, name: str, review: bool = False) -> str:
    """Start a job on the page as a person would; returns its id."""
    page.goto("/new")
    for role, path in files.items():
        page.set_input_files(f"#file-{role}", path)
    page.get_by_role("textbox", name="Name").fill(name)
    page.get_by_label("warmup.epochs").fill("8")
    page.get_by_text("All other settings").click()
    page.get_by_label("evolution.steps").fill("8")
    page.get_by_label("generation.shard_size").fill("32")
    page.get_by_label("propagation.retriever").fill("bm25")
    if review:
        page.get_by_label("Wait for my review").check()
    page.get_by_text("ready", exact=True).wait_for()
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/jobs/ftjob-*")
    return page.url.rpartition("/")[2]


@pytest.fixture
def files(deployment: Deployment) -> dict[str, Path]:
    return input_files(deployment.folder / "in")


@contextmanager
def no_reload(page: Page) -> Iterator[None]:
    """The document stays the same one."""
    page.evaluate("window.untouched = true")
    yield
    assert page.evaluate("window.untouched") is True


# --- signing in -------------------------------------------------------------------------------------------------------


def test_wrong_key_and_right_key(context: BrowserContext, deployment: Deployment) -> None:
    page = context.new_page()
    page.goto("/workers")
    page.get_by_label("API key").fill("sk-0123456789abcdef-wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("wrong, expired or revoked")
    page.get_by_label("API key").fill(deployment.key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Workers")).to_be_visible()  # where one wanted to go
    (cookie,) = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert deployment.key not in json.dumps(context.storage_state())
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    page.goto("/")
    expect(page.get_by_label("API key")).to_be_visible()


# --- the whole way ----------------------------------------------------------------------------------------------------


def test_from_three_files_to_the_adapter(page: Page, deployment: Deployment, files: dict[str, Path]) -> None:
    job_id = start(page, files, name="three files")
    with no_reload(page):
        stages = page.get_by_role("region", name="Progress")
        expect(stages.get_by_text("Generate answers")).to_be_visible(timeout=JOB_MS)
        expect(page.get_by_role("img", name="Training loss by step")).to_be_visible()
        expect(page.get_by_role("img", name="entropy of the reply")).to_be_visible(timeout=JOB_MS)
        expect(page.get_by_text("See the verdict")).to_be_visible(timeout=JOB_MS)
        page.get_by_role("link", name="Verdict", exact=True).click()
        report = page.frame_locator("iframe[title=Report]")
        expect(report.get_by_role("heading", name="How good the models are")).to_be_visible()
        expect(page.get_by_text("vllm serve")).to_be_visible()
        with page.expect_download() as download:
            page.get_by_role("link", name="Adapter").click()
    adapter = Path(download.value.path()).read_bytes()
    answer = deployment.get(f"{JOBS}/{job_id}/adapter")
    assert hashlib.sha256(adapter).hexdigest() == answer.headers["etag"].strip('"')
    assert adapter == answer.content
    page.goto("/")
    expect(page.get_by_role("row").filter(has_text="three files")).to_contain_text("succeeded")


def test_a_bad_file_is_told_by_line(page: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    bad.write_text(json.dumps(good) + "\n" + '{"messages": 7}\n' + "not JSON\n")
    page.goto("/new")
    page.set_input_files("#file-labeled", bad)
    problems = page.get_by_role("list", name="Problems by line")
    expect(problems).to_contain_text("line 2:")
    expect(problems).to_contain_text("line 3:")
    expect(page.get_by_role("button", name="Start the job")).to_be_disabled()


def test_what_cannot_start_is_told(page: Page, files: dict[str, Path]) -> None:
    page.goto("/new")
    page.set_input_files("#file-labeled", files["labeled"])
    page.set_input_files("#file-unlabeled", files["unlabeled"])
    page.get_by_text("ready", exact=True).wait_for()
    expect(page.get_by_text("Each reply is one of 8 classes.")).to_be_visible()
    expect(page.get_by_role("region", name="Lengths in tokens")).to_be_visible()
    expect(page.locator(".token.trained").first).to_be_visible()
    page.get_by_label("selection.theta").fill("7")
    page.get_by_label("selection.theta").blur()
    expect(page.get_by_text("This cannot start yet.")).to_be_visible()
    expect(page.get_by_role("alert").filter(has_text="selection.theta")).to_be_visible()
    expect(page.get_by_role("button", name="Start the job")).to_be_disabled()


# --- interruptions ----------------------------------------------------------------------------------------------------


def test_reload_and_restart_in_the_middle(page: Page, deployment: Deployment) -> None:
    job_id = deployment.post_job("interrupted", recipe=QUICK)
    page.goto(f"/jobs/{job_id}")
    expect(page.get_by_role("log")).to_contain_text("Fine-tuning job started", timeout=JOB_MS)
    page.reload()
    expect(page.get_by_role("log")).to_contain_text("Fine-tuning job started")
    with no_reload(page):
        deployment.kill_api()
        expect(page.get_by_text("connection lost")).to_be_visible()
        deployment.start_api()
        expect(page.get_by_text("connection lost")).to_be_hidden(timeout=30_000)
        expect(page.get_by_text("See the verdict")).to_be_visible(timeout=JOB_MS)
    said = page.get_by_role("log").get_by_role("listitem").all_inner_texts()
    assert sum("Fine-tuning job started" in line for line in said) == 1
    assert sum("Generate answers: done" in line for line in said) == 3


def test_pause_resume_and_cancel(page: Page, deployment: Deployment) -> None:
    job_id = deployment.post_job("stopped", recipe=QUICK)
    page.goto(f"/jobs/{job_id}")
    expect(page.get_by_text("running", exact=True).first).to_be_visible(timeout=JOB_MS)
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("Paused. Resume goes on")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("Paused. Resume goes on")).to_be_hidden()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.get_by_text("cancelled", exact=True).first).to_be_visible()
    assert deployment.job(job_id)["status"] == "cancelled"


def test_files_and_settings_of_a_job_are_used_again(page: Page, deployment: Deployment) -> None:
    job_id = deployment.post_job("again", recipe=QUICK)
    deployment.post(f"{JOBS}/{job_id}/cancel")
    page.goto(f"/new?from={job_id}")
    page.get_by_text("ready", exact=True).wait_for()
    expect(page.get_by_text("unlabeled.jsonl")).to_be_visible()
    page.get_by_text("All other settings").click()
    expect(page.get_by_label("evolution.steps")).to_have_value("8")
    page.goto("/new?from=ftjob-nothing")
    expect(page.get_by_role("alert")).to_contain_text("there is no fine-tuning job")


def labels(deployment: Deployment, job_id: str, **query: str) -> list[dict[str, Any]]:
    """What the API says to this query."""
    answer = deployment.get(f"{JOBS}/{job_id}/pseudo_labels", params={**query, "limit": "1000"})
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


# --- the labels -------------------------------------------------------------------------------------------------------


def test_review_by_keyboard_and_go_on(page: Page, deployment: Deployment) -> None:
    job_id = deployment.post_job("reviewed", recipe={**QUICK, "review": True})
    page.goto(f"/jobs/{job_id}")
    page.get_by_role("link", name="review them").click(timeout=JOB_MS)
    rows = page.locator("tbody tr")
    expect(rows.first).to_have_attribute("aria-current", "true")
    lines = [int(text) for text in page.locator("tbody tr td:first-child").all_inner_texts()[:6]]
    page.keyboard.press("r")
    expect(rows.nth(1)).to_have_attribute("aria-current", "true")
    expect(rows.nth(0)).to_contain_text("by a person")
    estimate = page.get_by_role("region", name="The job waits for your review")
    expect(estimate).to_contain_text("95 % interval")
    held: list[Route] = []
    page.route("**/pseudo_labels/summary", lambda route: held.append(route))  # noqa: PLW0108
    with page.expect_request("**/pseudo_labels/summary"):
        page.keyboard.press("a")
    expect(rows.nth(2)).to_have_attribute("aria-current", "true")
    page.keyboard.press("c")
    page.get_by_label("The right answer").fill("billing")
    for route in held:
        route.continue_()
    page.unroute("**/pseudo_labels/summary")
    expect(estimate).to_contain_text("Reviewed so far2")  # the page was drawn anew while one typed
    page.keyboard.press("Enter")
    expect(rows.nth(2)).to_contain_text("corrected")
    page.evaluate(FAST_KEYS, ["r", "a", "r", "k", "a"])
    expect(rows.nth(6)).to_have_attribute("aria-current", "true")
    expect(estimate).to_contain_text("Reviewed so far6")
    kept = [deployment.get(f"{JOBS}/{job_id}/pseudo_labels/{line}").json() for line in lines]
    assert [one["decision"] for one in kept] == ["reject", "accept", "accept", "reject", "accept", "accept"]
    assert kept[2]["answer"] == "billing"
    page.get_by_role("button", name="Go on with the job").click()
    page.get_by_role("dialog").get_by_role("button", name="Go on with the job").click()
    expect(page.get_by_text("The job waits for your review")).to_be_hidden()
    deployment.wait_for_success(job_id)
    page.get_by_role("link", name="Watch").click()
    expect(page.get_by_text("Decided by a person")).to_be_visible()


def test_filter_and_open_a_label(page: Page, deployment: Deployment) -> None:
    job_id = deployment.post_job(
        "looked into", recipe={**QUICK, "generation": {**QUICK["generation"], "answers": "sampled"}}
    )
    deployment.wait_for_success(job_id)
    page.goto(f"/jobs/{job_id}/labels")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(ROWS)
    page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(2 * ROWS)
    page.get_by_label("Decision").select_option("reject")
    rejected = deployment.get(f"{JOBS}/{job_id}/pseudo_labels", params={"decision": "reject", "limit": 1000}).json()[
        "data"
    ]
    expect(rows).to_have_count(min(ROWS, len(rejected)))
    page.get_by_label("Order").select_option("-entropy")
    surest = max(one["entropy"] for one in rejected if one["entropy"] is not None)
    expect(rows.first).to_contain_text(f"{surest:.3f}")
    page.get_by_role("button", name="Clear").click()
    word = rejected[0]["question"].split()[-1].strip(".!?")
    page.get_by_label("Search the questions").fill(word)
    expect(rows).to_have_count(min(ROWS, len(labels(deployment, job_id, q=word))))
    rows.first.get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Collaborator 4")
    expect(dialog).to_contain_text("similarity")
    expect(dialog).to_contain_text("p < 10 %")
    expect(dialog.locator(".trial .token").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_hostile_text_is_text(page: Page, deployment: Deployment, tmp_path: Path) -> None:
    """Scripts, right-to-left marks and long lines in what users gave are shown, not run."""
    write(tmp_path, HELPDESK, draw(HELPDESK, 92, 24, 96, 8))
    hostile = "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'> \u202egnol " + "x" * 100_000
    lines = (tmp_path / "unlabeled.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"messages": [{"role": "user", "content": hostile}]})
    (tmp_path / "unlabeled.jsonl").write_text("\n".join(lines) + "\n")
    ids = {}
    with deployment.http() as client:
        for role in ("labeled", "unlabeled"):
            files = {"file": (f"<img src=x>{role}.jsonl", (tmp_path / f"{role}.jsonl").read_bytes())}
            ids[role] = client.post("/v1/files", files=files, data={"purpose": "fine-tune"}).json()["id"]
    body = {
        "model": "semievol-demo",
        "training_file": ids["labeled"],
        "suffix": "<i>name</i>",
        "method": {"type": "semievol", "semievol": {"unlabeled_file": ids["unlabeled"], **QUICK}},
    }
    job_id = deployment.post(JOBS, body)["id"]
    deployment.wait_for_success(job_id)
    page.goto(f"/jobs/{job_id}/labels")
    expect(page.get_by_role("heading", name="<i>name</i>")).to_be_visible()
    first = page.locator("tbody tr").first
    expect(first).to_contain_text("<script>window.harmed = 1</script>")
    first.get_by_role("button").click()
    expect(page.get_by_role("dialog")).to_contain_text("onerror='window.harmed = 1'")
    page.goto(f"/jobs/{job_id}/verdict")
    expect(page.frame_locator("iframe").get_by_role("heading", name="Provenance")).to_be_visible()
    page.goto("/files")
    expect(page.get_by_text("<img src=x>labeled.jsonl")).to_be_visible()
    assert page.evaluate("window.harmed") is None

"""The report's words and its page."""

import copy
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from semievol import page, pipeline, summary, wording
from semievol.fakes import FakeBackend, FakeObserver
from semievol.recipe import Recipe
from tests.test_cli import LABELS, write_chats

HOSTILE = "<script>alert('labels')</script>"


def accuracy(value: float, n: int) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1), "n": n}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a run over doubles, one class of which is a script."""
    folder = tmp_path_factory.mktemp("report")
    classes = [*LABELS, ("run this for me", HOSTILE)]
    labeled = [(f"{question} {number}", reply) for number in range(5) for question, reply in classes]
    unlabeled: list[tuple[str, str | None]] = [
        (f"{question} item {n}", None) for n in range(9) for question, _ in classes
    ]
    job = pipeline.Job(
        "model",
        write_chats(folder / "labeled.jsonl", [*labeled]),
        write_chats(folder / "unlabeled.jsonl", unlabeled),
        Recipe(),
        0,
        None,
        write_chats(folder / "test.jsonl", [(f"{question} now", reply) for question, reply in classes]),
    )
    return pipeline.run(job, FakeBackend(), folder / "out", FakeObserver())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run without an unlabeled file: plain fine-tuning."""
    folder = tmp_path_factory.mktemp("plain")
    labeled = write_chats(
        folder / "labeled.jsonl", [(f"{q} {number}", reply) for number in range(5) for q, reply in LABELS]
    )
    test = write_chats(folder / "test.jsonl", [(f"{question} now", reply) for question, reply in LABELS])
    pipeline.run(
        pipeline.Job("model", labeled, None, Recipe(), test=test), FakeBackend(), folder / "out", FakeObserver()
    )
    return folder / "out"


@pytest.fixture
def changed(report: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(report)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_every_row_is_counted_once(report: dict[str, Any]) -> None:
    rows = report["rows"]["unlabeled"]
    assert sum(report["decisions"].values()) == sum(report["reasons"].values()) == rows == 27


def test_rows_of_several_rounds_are_counted_once(tmp_path: Path) -> None:
    labeled = [(f"{question} {number}", reply) for number in range(5) for question, reply in LABELS]
    job = pipeline.Job(
        "model",
        write_chats(tmp_path / "labeled.jsonl", [*labeled]),
        write_chats(tmp_path / "unlabeled.jsonl", [(f"{q} item {n}", None) for n in range(20) for q, _ in LABELS]),
        Recipe.resolve({"rounds": 3, "selection": {"theta": 0.3}}),
    )
    report = pipeline.run(job, FakeBackend(), tmp_path / "out", FakeObserver())
    assert sum(report["decisions"].values()) == sum(report["reasons"].values()) == 40
    assert report["decisions"]["accept"] == sum(
        one["decisions"]["accept"] for one in report["rounds"][: report["best_round"]]
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.97, "1:00"), (125, "2:05"), (7385, "2:03:05")]
)
def test_durations(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sft", "evolved", "p_value", "words"),
    [
        (0.6, 0.8, 0.001, "SemiEvol beats plain fine-tuning by 20.0 points: 80.0 % against 60.0 % right."),
        (0.8, 0.6, 0.001, "SemiEvol is worse than plain fine-tuning by 20.0 points: 60.0 % against 80.0 % right."),
        (0.6, 0.8, 0.2, "cannot be told apart on 90 rows"),
    ],
)
def test_headline_claims_no_more_than_the_test_shows(
    changed: dict[str, Any], sft: float, evolved: float, p_value: float, words: str
) -> None:
    changed["accuracy"] |= {"sft": accuracy(sft, 90), "semievol": accuracy(evolved, 90)}
    changed["flips"]["p_value"] = p_value
    assert words in wording.headline(changed)


@pytest.mark.parametrize(
    ("sft", "evolved", "best", "delivered", "words"),
    [
        (
            0.5,
            0.7,
            "semievol",
            "semievol",
            "SemiEvol's adapter is delivered: it validates better, 70.0 % against SFT's",
        ),
        (0.5, 0.5, "semievol", "semievol", "a tie goes to SemiEvol"),
        (
            0.7,
            0.5,
            "sft",
            "sft",
            "The SFT adapter is delivered: SemiEvol's validates worse, 50.0 % against SFT's 70.0 %",
        ),
        (0.7, 0.5, "sft", "semievol", "although it validates worse"),
    ],
)
def test_delivery_is_explained(
    changed: dict[str, Any], sft: float, evolved: float, best: str, delivered: str, words: str
) -> None:
    changed["validation"] |= {"sft": accuracy(sft, 60), "semievol": accuracy(evolved, 60), "held_out": 60}
    changed |= {"best": best, "delivered": delivered}
    assert words in wording.delivered(changed)
    assert "60 validation rows held out of the labeled file" in wording.delivered(changed)


@pytest.mark.parametrize(("rows", "p_value", "warns"), [(6, 0.25, True), (49, 0.04, False), (50, 1.0, False)])
def test_few_validation_rows_are_warned_about(changed: dict[str, Any], rows: int, p_value: float, warns: bool) -> None:
    changed["validation"] |= {"sft": accuracy(0.5, rows), "flips": {"gained": 3, "lost": 0, "p_value": p_value}}
    assert (wording.caution(changed) is not None) is warns


@pytest.mark.parametrize(("sft", "evolved", "says"), [(40, 200, True), (40, 59, False), (40, 20, False)])
def test_unequal_training_is_mentioned(changed: dict[str, Any], sft: int, evolved: int, says: bool) -> None:
    changed["training"]["warmup"]["steps"], changed["training"]["evolution"]["steps"] = sft, evolved
    assert (wording.steps(changed) is not None) is says


def test_figures_on_validation_rows_say_so(changed: dict[str, Any]) -> None:
    changed["measured_on"] = "validation"
    assert "no test file was given" in wording.measured_on(changed)


def test_serving_makes_room_for_the_rank(changed: dict[str, Any]) -> None:
    changed["recipe"]["evolution"]["lora"]["rank"] = 48
    assert "--max-lora-rank 64" in " ".join(wording.serve_command(changed, "a b", "out/adapter"))
    assert wording.serve_command(changed, "a b", "out/adapter")[0] == "vllm serve 'a b'"


# --- the page ---------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects tags and checks that they nest."""

    VOID = ("meta", "br", "wbr", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return reader


def test_page_holds_the_figures(report: dict[str, Any]) -> None:
    html = page.render_html(report)
    read(html)
    for one in report["accuracy"].values():
        assert wording.percent(one["value"]) in html
    assert wording.interval(report["accuracy"]["sft"]) in html
    assert report["provenance"]["inputs"]["labeled file (SHA-256)"] in html


def test_what_users_wrote_is_escaped(report: dict[str, Any]) -> None:
    assert HOSTILE in report["answer_mix"]
    html = page.render_html(report)
    assert "<script" not in html
    assert "&lt;script&gt;alert" in html


def test_hostile_paths_are_escaped(changed: dict[str, Any]) -> None:
    changed["provenance"]["inputs"]["model"] = '"><img src=x onerror=alert(1)>'
    assert "img" not in {tag for tag, _ in read(page.render_html(changed)).tags}


def test_page_needs_nothing_from_outside(report: dict[str, Any]) -> None:
    html = page.render_html(report)
    reader = read(html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in reader.tags}
    assert not [attrs for _, attrs in reader.tags if {"src", "href"} & attrs.keys()]
    assert not re.search(r"url\(|@import|https?:", html)


def test_page_copes_with_a_run_that_has_little_to_show(changed: dict[str, Any]) -> None:
    changed["answer_mix"], changed["differs_from_paper"] = {}, {"preset": ["default", "paper"]}
    for training in changed["training"].values():
        training["losses"] = []
    html = page.render_html(changed)
    read(html)
    assert "too short to log a loss" in html
    assert "None: this is the preset paper." in html


def test_same_report_same_page(report: dict[str, Any]) -> None:
    assert page.render_html(report) == page.render_html(copy.deepcopy(report))


def test_rare_answers_are_summed(changed: dict[str, Any]) -> None:
    changed["answer_mix"] = {f"class {number:02d}": 100 - number for number in range(30)}
    changed["rounds"] = [{"answers": {"class 29": 4, "class 00": 6}}]
    changed["best_round"] = 1
    shares = page.answer_shares(changed)
    assert len(shares) == page.MAX_ANSWERS + 1
    assert shares[0] == page.AnswerShare("class 00", 100 / 2565, 0.6, 6)
    assert (shares[-1].answer, shares[-1].accepted_rows) == ("10 more", 4)
    assert sum(share.labeled for share in shares) == pytest.approx(1)


def test_loss_chart_shares_its_axes(changed: dict[str, Any]) -> None:
    changed["training"]["warmup"]["losses"] = [[10, 2.0], [20, 1.0]]
    changed["training"]["evolution"]["losses"] = [[10, 1.0], [40, 0.5]]
    chart = page.loss_chart(changed)
    assert chart is not None
    assert (chart.steps, chart.top) == (40, 2.0)
    assert chart.curves[0].points == [(25.0, 0.0), (50.0, 50.0)]
    assert chart.curves[1].points == [(25.0, 50.0), (100.0, 75.0)]


# --- plain fine-tuning ------------------------------------------------------------------------------------------------


def told(output: Path) -> dict[str, Any]:
    """What a run left in `report.json`."""
    report: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return report


def test_plain_fine_tuning_reports_nothing_of_semievol(plain: Path) -> None:
    report = told(plain)
    assert sorted(path.name for path in plain.iterdir()) == ["adapter", "report.html", "report.json", "stages"]
    assert report["accuracy"].keys() == {"base", "sft"}
    assert report["validation"].keys() == {"sft", "held_out"}
    assert report["training"].keys() == {"warmup"}
    assert (report["best"], report["delivered"], report["rows"]["unlabeled"]) == ("sft", "sft", 0)
    left_out = {"flips", "decisions", "reasons", "rounds", "best_round", "deliver", "differs_from_paper"}
    assert not left_out & report.keys()


def test_the_page_of_plain_fine_tuning_shows_base_and_sft_only(plain: Path) -> None:
    report, html = told(plain), (plain / "report.html").read_text(encoding="utf-8")
    assert html == page.render_html(report)
    read(html)
    for one in report["accuracy"].values():
        assert wording.percent(one["value"]).replace(" %", "\u00a0%") in html
    assert "The fine-tuned adapter is delivered" in html
    assert len(re.findall('class="tag">delivered<', html)) == 1
    body = html.partition("</style>")[2].replace("SemiEvol report", "").replace("<code>semievol</code>", "")
    body = body.partition("<pre>")[0]
    assert not re.search("SemiEvol|unlabeled row,|pseudo|McNemar|paper|flatters", body, re.IGNORECASE)
    assert "pseudo_labels.parquet" not in html


def test_the_summary_of_plain_fine_tuning_names_what_is_there(plain: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    summary.show(told(plain), plain, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "The fine-tuned adapter is delivered" in text
    assert "Base model" in text
    assert "SemiEvol" not in text
    assert "Pseudo-labels" not in text


def test_plain_fine_tuning_on_held_out_rows_flatters_nothing(plain: Path) -> None:
    report = told(plain) | {"measured_on": "validation"}
    assert "no test file was given" in wording.measured_on(report)
    assert "flatters" not in wording.measured_on(report)


def test_plain_fine_tuning_is_served_with_its_own_rank(plain: Path) -> None:
    report = told(plain)
    report["recipe"]["evolution"]["lora"]["rank"] = 256
    rank = report["recipe"]["warmup"]["lora"]["rank"]
    assert f"--max-lora-rank {rank}" in " ".join(wording.serve_command(report, "base", "adapter"))

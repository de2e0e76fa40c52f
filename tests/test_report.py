"""The report's words and its page."""

import copy
import io
import json
import math
import re
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from semievol import charts, evidence, histograms, page, summary, wording
from semievol.evaluation import Prediction
from semievol.examples import Example
from semievol.prompts import Message
from semievol.tables import write_examples
from tests.reports import CASES, HOSTILE, supervised


def accuracy(value: float, n: int) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1), "n": n}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The report of each kind of run."""
    folder = tmp_path_factory.mktemp("reports")
    return {name: case(folder / name) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def report(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The report of a run over doubles, one class of which is a script."""
    return reports["hostile"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run without an unlabeled file: plain fine-tuning."""
    folder = tmp_path_factory.mktemp("plain")
    supervised(folder)
    return folder / "out"


@pytest.fixture
def changed(report: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(report)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_every_row_is_counted_once(report: dict[str, Any]) -> None:
    rows = report["rows"]["unlabeled"]
    assert sum(report["decisions"].values()) == sum(report["reasons"].values()) == rows == 27


def test_rows_of_several_rounds_are_counted_once(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["several_rounds"]
    assert len(report["rounds"]) > 1
    assert sum(report["decisions"].values()) == sum(report["reasons"].values()) == 18
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
        assert wording.percent(one["value"]).replace(" %", "\u00a0%") in html
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
    for training in (changed["training"]["warmup"], changed["rounds"][0]["training"]):
        training["losses"] = []
    html = page.render_html(changed)
    read(html)
    assert "too short to log a loss" in html
    assert re.search(r"differ from the default or the paper</h2>\s*<p>None\.</p>", html)


def test_same_report_same_page(report: dict[str, Any]) -> None:
    assert page.render_html(report) == page.render_html(copy.deepcopy(report))


def test_rare_answers_are_summed(changed: dict[str, Any]) -> None:
    changed["answer_mix"] = {f"class {number:02d}": 100 - number for number in range(30)}
    changed["rounds"] = [{"answers": {"class 29": 4, "class 00": 6}}]
    changed["best_round"] = 1
    shares = charts.answer_shares(changed)
    assert len(shares) == charts.MAX_ANSWERS + 1
    assert shares[0] == charts.AnswerShare("class 00", 100 / 2565, 0.6, 6)
    assert (shares[-1].answer, shares[-1].accepted_rows) == ("10 more", 4)
    assert sum(share.labeled for share in shares) == pytest.approx(1)


def test_loss_chart_shares_its_axes(changed: dict[str, Any]) -> None:
    changed["training"]["warmup"]["losses"] = [[10, 2.0], [20, 1.0]]
    changed["rounds"][0]["training"]["losses"] = [[10, 1.0], [40, 0.5]]
    chart = charts.loss_chart(changed)
    assert chart is not None
    assert (chart.steps, chart.top) == (40, 2.0)
    assert chart.curves[0].points == [(25.0, 0.0), (50.0, 50.0)]
    assert chart.curves[1].points == [(25.0, 50.0), (100.0, 75.0)]


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_run_has_a_page(reports: dict[str, dict[str, Any]], case: str) -> None:
    html = page.render_html(reports[case])
    reader = read(html)
    assert "SemiEvol report" in html
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = {name for _, attrs in reader.tags for name in (attrs.get("aria-labelledby") or "").split()}
    assert named <= set(ids)


@pytest.mark.parametrize("case", CASES)
def test_every_picture_has_a_title_or_is_an_ornament(reports: dict[str, dict[str, Any]], case: str) -> None:
    pictures = re.findall(r"<svg\b([^>]*)>\s*(<title id=)?", page.render_html(reports[case]))
    assert len(pictures) > 5
    for attributes, title in pictures:
        assert title if 'role="img"' in attributes else 'aria-hidden="true"' in attributes


@pytest.mark.parametrize("case", CASES)
def test_reports_hold_plain_json(reports: dict[str, dict[str, Any]], case: str) -> None:
    assert json.loads(json.dumps(reports[case], allow_nan=False)) == reports[case]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("supervised", "What it gets wrong"),
        ("untested", "no test file was given"),
        ("free_text", "Replies are free text"),
        ("numbers", "numbers, which are equal within 1 %"),
        ("many_classes", "Confusion matrix of 26 classes"),
        ("several_rounds", "2 rounds; round 1 validates best"),
        ("all_thrown_out", "A person reviewed the pseudo-labels before they were trained on and decided 18 of them."),
        ("all_thrown_out", "This run kept none."),
        ("too_long", "No row was answered."),
        ("sft_delivered", "The SFT adapter is delivered"),
    ],
)
def test_what_is_special_is_said(reports: dict[str, dict[str, Any]], case: str, words: str) -> None:
    assert words in page.render_html(reports[case]).replace("\u00a0", " ")


def test_the_page_shows_the_figures_of_its_report(changed: dict[str, Any]) -> None:
    changed["flips"] |= {"gained": 1234, "lost": 567}
    changed["decisions"] |= {"accept": 4321}
    changed["training"]["warmup"] |= {"tokens": 98765}
    changed["stage_tokens"]["warm-up"] = 98765
    changed["accuracy"]["semievol"] = accuracy(0.4567, 4242)
    html = page.render_html(changed)
    for figure in ("1,234", "567", "4,321", "98,765", "98,765 tokens", "45.7\u00a0%", "35.7 – 55.7", "4,242"):
        assert figure in html


def test_long_texts_are_shortened_and_folded(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["free_text"]
    quoted = [one["question"] for ones in report["examples"].values() for one in ones]
    assert quoted
    assert all(len(question) <= evidence.LONGEST and question.endswith(" …") for question in quoted)
    assert '<details class="text">' in page.render_html(report)
    assert "<b>" not in page.render_html(report)


# --- what the report is made of ---------------------------------------------------------------------------------------


def test_confusion_counts_every_held_out_row_once(reports: dict[str, dict[str, Any]]) -> None:
    for told in reports.values():
        for model, entries in told.get("confusion", {}).items():
            n = told["accuracy"][model]["n"]
            assert sum(rows for _, _, rows in entries) == n
            right = sum(rows for wanted, given, rows in entries if wanted == given)
            assert right / n == pytest.approx(told["accuracy"][model]["value"])
    assert "confusion" not in reports["free_text"]
    assert "confusion" not in reports["numbers"]


def test_every_answered_row_is_in_each_histogram(reports: dict[str, dict[str, Any]]) -> None:
    for told in reports.values():
        if not wording.evolves(told):
            continue
        labels, counted = told["pseudo_labels"], Counter[str]()
        for sides in labels["certainty"].values():
            counted.update({side: sum(counts) for side, counts in sides.items()})
        assert counted.total() == labels["answered"]
        assert counted["accept"] == told["decisions"]["accept"]
        assert sum(labels["entropy"]["accept"]) == told["decisions"]["accept"]


def test_examples_stand_under_their_decision_and_reason(reports: dict[str, dict[str, Any]]) -> None:
    told = reports["all_thrown_out"]["pseudo_labels"]["examples"]
    assert told["accept"] == {}
    assert {reason: len(ones) for reason, ones in told["reject"].items()} == {"reviewed": evidence.SHOWN}
    nothing = reports["too_long"]["pseudo_labels"]["examples"]["reject"]["too_long"][0]
    assert (nothing["answer"], nothing["certainty"], nothing["votes"]) == (None, None, [])


@pytest.mark.parametrize("order", [1, -1])
def test_drawn_examples_do_not_depend_on_the_order(order: int) -> None:
    draw, made = evidence.Draw(), []

    def make(key: str) -> dict[str, Any]:
        made.append(key)
        return {"key": key}

    keys = [f"{number * 7919 % 1000:03d}" for number in range(1000)][::order]
    for key in keys:
        draw.offer(key, partial(make, key))
    assert [one["key"] for one in draw.drawn()] == ["000", "001", "002", "003"]
    assert len(made) < 100


def test_held_out_examples_are_those_that_flipped(tmp_path: Path) -> None:
    texts = {"a": "gained", "b": "lost", "c": "wrong", "d": "right"}
    rows = [Example(key, 1, (Message("user", text),), "yes", None) for key, text in texts.items()]
    write_examples(tmp_path / "rows.parquet", rows)

    def predicted(*right: str) -> list[Prediction]:
        return [Prediction(key, 1, "?", "yes" if key in right else None, "yes", key in right) for key in texts]

    models = {"sft": predicted("b", "d"), "semievol": predicted("a", "d")}
    told = evidence.held_out_examples(tmp_path / "rows.parquet", models)
    assert {kind: [one["question"] for one in ones] for kind, ones in told.items()} == {
        "gained": ["gained"],
        "lost": ["lost"],
        "wrong": ["wrong"],
    }
    assert told["gained"][0]["answers"] == {"sft": "?", "semievol": "yes"}


def test_the_selection_curve_is_the_mean_and_the_least_of_the_surest_rows() -> None:
    fine = [0] * 10
    fine[9], fine[4] = 5, 5  # half of the rows about 0.95 sure, half about 0.45
    curve = {share: (mean, least) for share, mean, least in histograms.selection_curve(fine)}
    assert curve[0.5] == (0.95, 0.95)
    assert curve[0.6] == (0.8667, 0.45)
    assert curve[1.0] == (0.7, 0.45)
    assert histograms.selection_curve([0] * 10) == []


def test_watching_keeps_no_rows() -> None:
    """Twenty thousand pseudo-labels leave as much behind as a hundred."""
    record = {
        "line": 1, "messages": [{"role": "user", "content": "q" * 5000, "weight": 1}], "answer": "a", "reply": "a",
        "decision": "accept", "reason": "confident", "outcome": "consistent", "confidence": 0.9, "entropy": 0.1,
        "trials": [{"answer": "a"}],
    }  # fmt: skip

    def told(rows: int) -> dict[str, Any]:
        watched = evidence.Watched("probability")
        assert sum(1 for _ in watched.watch({**record, "id": f"{n:08d}"} for n in range(rows))) == rows
        return watched.told()

    few, many = told(100), told(20_000)
    assert (few.pop("answered"), many.pop("answered")) == (100, 20_000)
    assert len(json.dumps(many)) < len(json.dumps(few)) + 100
    assert many["kept"] == {"share": 1.0, "mean": 0.9, "least": 0.9}


@pytest.mark.parametrize(
    ("measure", "confidence", "sure"),
    [("probability", 0.7, 0.7), ("vote_share", 1.0009, 1.0), ("token_probability", -math.log(4), 0.25)],
)
def test_confidence_becomes_a_share(measure: histograms.Measure, confidence: float, sure: float) -> None:
    assert histograms.certainty(confidence, measure) == pytest.approx(sure)


def test_precision_is_claimed_where_a_person_looked_only(changed: dict[str, Any]) -> None:
    assert "is not known" in wording.precision(changed)
    changed["review"] = {"accept": accuracy(0.8, 25)}
    assert "Of 25 selected rows that a person decided, 80.0 % kept the answer" in wording.precision(changed)
    assert "is not known" not in wording.precision(changed)


def test_reviewed_rows_are_the_precision(reports: dict[str, dict[str, Any]]) -> None:
    review = reports["all_thrown_out"]["review"]
    assert (review["accept"]["value"], review["accept"]["n"], review["reject"]["n"]) == (0.0, 12, 6)
    assert not [name for name, told in reports.items() if "review" in told and name != "all_thrown_out"]


def test_settings_stand_beside_the_default_and_the_paper(changed: dict[str, Any]) -> None:
    changed["differs_from_default"] = {"rounds": [3, 1]}
    changed["differs_from_paper"] = {"preset": ["default", "paper"], "rounds": [3, 1], "selection.theta": [0.75, 0.5]}
    assert page.differing_settings(changed) == [
        page.Setting("rounds", 3, 1, 1),
        page.Setting("selection.theta", 0.75, 0.75, 0.5),
    ]


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_matrix_has_the_delivered_model_s_rows(changed: dict[str, Any]) -> None:
    changed["delivered"] = "sft"
    changed["confusion"] = {"sft": [["a", "a", 3], ["b", "a", 1], ["b", None, 3]]}
    found = charts.matrix(changed)
    assert found is not None
    assert [[cell.rows for cell in line.cells] + [line.unread] for line in found.lines] == [[3, 0, 0], [1, 0, 3]]
    assert found.lines[1].cells[0].shade == 0.5
    assert charts.mistakes(changed) == [charts.Mistake("b", "a", 1), charts.Mistake("b", None, 3)]


def test_a_matrix_of_too_many_classes_is_left_out(changed: dict[str, Any]) -> None:
    many = [[f"{n:03d}", f"{n:03d}", 1] for n in range(charts.MAX_SHADES + 1)]
    changed["confusion"] = dict.fromkeys(changed["confusion"], many)
    assert charts.matrix(changed) is None
    read(page.render_html(changed))
    assert len(charts.class_scores(changed)) == charts.MAX_ANSWERS


def test_bars_are_as_high_as_their_rows_are_many() -> None:
    found = charts.histogram("key", {"accept": [0, 4, 1, 0], "reject": [0, 4, 1, 0]})
    assert found.bars == [charts.Bar(25, 21.5, 50, 50), charts.Bar(50, 21.5, 12.5, 12.5)]
    assert (found.accepted, found.rejected, found.tallest) == (5, 5, 8)


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
    left_out = {
        "pseudo_labels",
        "flips",
        "decisions",
        "reasons",
        "rounds",
        "best_round",
        "deliver",
        "differs_from_paper",
    }
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

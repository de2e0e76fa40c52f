"""What a report means, in sentences: the same words on the terminal and on the page. Pure.

Functions take the report as plain values (what `report.json` holds).
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]

MODELS = {"base": "Base model", "sft": "SFT (labels only)", "semievol": "SemiEvol"}
"""The rows of the accuracy table, in order; plain fine-tuning has no last one."""
FEW_VALIDATION_ROWS = 50
"""Below this a 95 % interval is wider than 13 points each way, so a choice between two adapters needs a caution."""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `vllm serve --max-lora-rank` accepts; its default is 16."""

_STAGES = {
    "prepare": "Check the files",
    "base": "Measure the base model",
    "warm-up": "Fine-tune on the labels (SFT)",
    "warm-up-validation": "Validate SFT",
    "neighbours": "Find similar labeled rows",
    "generate": "Generate answers",
    "select": "Select pseudo-labels",
    "train": "Fine-tune on labels and pseudo-labels",
    "validation": "Validate SemiEvol",
    "sft-test": "Measure SFT",
    "semievol-test": "Measure SemiEvol",
    "review": "Apply the review",
    "publish": "Write adapter and report",
    "export": "Pack the results",
}
_UNITS = {"propagate": "Propagate the labels", "evaluate": "Measure and publish"}
"""Units of the service that hold several stages, for as long as they have not begun one."""
_PATH = re.compile(r"(?:round-(?P<round>\d+)/)?(?P<stage>.+?)(?:-(?P<shard>\d{5}))?")

REASONS = {
    "confident": "confident enough",
    "not_confident": "not confident enough",
    "reviewed": "decided by a person",
    "drawn": "drawn at random",
    "not_drawn": "not drawn",
    "kept_all": "all rows kept",
    "unparsable": "no reply could be read as an answer",
    "justification_unparsable": "the justification could not be read as an answer",
    "too_long": "too long for the model",
}

OUTCOMES = {
    "consistent": "all collaborators agreed",
    "justified": "they differed; self-justification took part",
    "majority": "they differed; the largest group decided",
    "balanced": "they agreed on an answer that the labeled mix made less likely",
}

MEASURES = {
    "probability": "probability of the answer",
    "vote_share": "share of the votes",
    "token_probability": "mean probability of the reply's tokens",
}

_KINDS = {
    "number": "Replies are read as numbers, which are equal within {tolerance}.",
    "text": "Replies are free text, compared without case, punctuation and articles.",
    "exact": "Replies are compared as they are written.",
}


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage took. `tokens`: of the rows that it trained on, or of the replies that it wrote; None for others.

    `expected`: seconds that it was to take; None where nothing was expected.
    """

    label: str
    seconds: float
    tokens: int | None
    expected: float | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """One of the run's trainings. `key`: `warmup` or `evolution`; `facts`: rows, steps, tokens, losses."""

    name: str
    key: str
    facts: Mapping[str, Any]


# --- stages -----------------------------------------------------------------------------------------------------------


def stage_label(path: str) -> str:
    """A stage's path in the output folder for people; the shards of a round share a label."""
    return _label(path, _STAGES)


def work_label(name: str) -> str:
    """The label of a stage, or of a unit of the service that has not begun a stage yet."""
    return _label(name, _STAGES | _UNITS)


def _label(path: str, labels: Mapping[str, str]) -> str:
    match = _PATH.fullmatch(path)
    if match is None or (label := labels.get(match["stage"])) is None:
        return path
    return f"Round {match['round']}: {label}" if match["round"] and int(match["round"]) > 1 else label


def counted(path: str) -> str:
    """What a stage counts: `row` or `step`, and `shard` for a round's generation as a whole."""
    if path.endswith("/generate"):
        return "shard"
    return "step" if path == "warm-up" or path.endswith("/train") else "row"


def shard_of(path: str) -> int | None:
    """The number of a shard's stage, counted from 0; None for a stage that has no shards."""
    match = _PATH.fullmatch(path)
    return int(match["shard"]) if match and match["shard"] else None


def stage_costs(report: Report) -> list[StageCost]:
    """Seconds and tokens by stage in the order of the run, the shards of a round summed."""
    seconds: dict[str, float] = {}
    tokens: dict[str, int] = {}
    expected: dict[str, float] = {}
    for path, one in ((report.get("estimate") or {}).get("stages") or {}).items():
        if one["seconds"] is not None:
            expected[stage_label(path)] = one["seconds"]
    for path, taken in report["stage_seconds"].items():
        label = stage_label(path)
        seconds[label] = seconds.get(label, 0.0) + taken
        if path in report["stage_tokens"]:
            tokens[label] = tokens.get(label, 0) + report["stage_tokens"][path]
    return [StageCost(label, taken, tokens.get(label), expected.get(label)) for label, taken in seconds.items()]


def stage_seconds(report: Report) -> list[tuple[str, float]]:
    """Seconds by stage in the order of the run, the shards of a round summed."""
    return [(one.label, one.seconds) for one in stage_costs(report)]


def foretold(estimate: Mapping[str, Any]) -> str:
    """What a job will take, and how that is known, in sentences."""
    parts = [] if estimate["seconds"] is None else [f"about {duration(estimate['seconds'])} of work"]
    parts.append(f"{count(sum(estimate['tokens'].values()), 'token')}")
    if estimate["gpu_memory_bytes"] is not None:
        parts.append(f"{byte_count(estimate['gpu_memory_bytes'])} of GPU memory")
    told = [f"Expected: {listed(parts)}.", learned_from(estimate)]
    if estimate["gpu_memory_share"] is not None:
        told.append(f"vLLM takes {100 * estimate['gpu_memory_share']:.0f} % of the GPU's memory whatever it needs.")
    return " ".join(told)


def learned_from(estimate: Mapping[str, Any]) -> str:
    """What the expected time was learned from, in a sentence."""
    jobs = estimate["learned_from"]
    if jobs:
        return f"The time was learned from {count(jobs, 'finished job')} of this base model."
    if estimate["seconds"] is None:
        return "The time is not known: no job of this base model has finished here, and its size is not at hand."
    return "The time is a guess from the model's size: no job of this base model has finished here."


def came_true(report: Report) -> str | None:
    """What was expected against what the run took, in sentences; None where nothing was expected."""
    estimate = report.get("estimate")
    if not estimate:
        return None
    actual = estimate["actual"]
    tokens = [sum(one["tokens"].values()) for one in (estimate, actual)]
    read = f"{tokens[0]:,} tokens were expected and {tokens[1]:,} were read and written{_off(*tokens)}."
    if estimate["seconds"] is None:
        return f"{read} {learned_from(estimate)}"
    seconds = estimate["seconds"], actual["seconds"]
    took = f"{duration(seconds[0])} was expected and the stages took {duration(seconds[1])}{_off(*seconds)}."
    return f"{took} {read} {learned_from(estimate)}"


def _off(expected: float, actual: float) -> str:
    """How far an expectation was off: a factor, whichever way."""
    if not expected or not actual:
        return ""
    return f" (off by a factor of {max(expected / actual, actual / expected):.2f})"


def byte_count(number: float) -> str:
    """820 bytes, 1.5 kB, 17 GB: powers of 1,000."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    place = 0
    while number >= 999.5 and place < len(units) - 1:
        number, place = number / 1000, place + 1
    return f"{number:.1f} {units[place]}" if place and number < 99.5 else f"{number:,.0f} {units[place]}"


def trainings(report: Report) -> list[Training]:
    """SFT's training, then that of every round."""
    found = [Training("SFT", "warmup", report["training"]["warmup"])]
    rounds = report["rounds"] if evolves(report) else []
    for one in rounds:
        name = f"SemiEvol, round {one['round']}" if len(rounds) > 1 else "SemiEvol"
        found.append(Training(name, "evolution", one["training"]))
    return found


# --- numbers ----------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """0.8312 as 83.1 %."""
    return f"{100 * share:.1f} %"


def interval(accuracy: Mapping[str, float]) -> str:
    """The bounds of a 95 % interval, in percent."""
    return f"{100 * accuracy['low']:.1f} – {100 * accuracy['high']:.1f}"


def duration(seconds: float) -> str:
    """Seconds as 7.3 s, 1:05 (minutes) or 2:03:09 (hours)."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def p_value(value: float) -> str:
    """A p-value with as many digits as mean something."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def loss_words(loss: float) -> str:
    """A training's loss, in nats per token."""
    return f"loss {loss:.3f}"


def count(number: int, noun: str) -> str:
    """1 row, 1,600 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- what was asked ---------------------------------------------------------------------------------------------------


def asked(report: Report) -> str:
    """What the run was given and what it was to do with it, in sentences."""
    rows, model = report["rows"], report["provenance"]["inputs"]["model"]
    given = count(rows["labeled"], "labeled row")
    if evolves(report):
        given += f" and {count(rows['unlabeled'], 'row')} without answers"
    told = [f"To adapt {model} to a task, from {given}.", answer_kind(report)]
    if evolves(report):
        validation = count(rows["validation"], "row")
        source = "held out of the labeled file" if report["validation"]["held_out"] else "of the validation file"
        told.append(f"Which adapter is delivered is chosen on {validation} {source}.")
    if any("reviewed" in one for one in report.get("rounds", [])):
        changed = sum(one.get("reviewed", 0) for one in report["rounds"])
        told.append(f"A person reviewed the pseudo-labels before they were trained on and decided {changed:,} of them.")
    return " ".join(told)


def answer_kind(report: Report) -> str:
    """How replies are read, in a sentence."""
    answers = report["answers"]
    if answers["kind"] != "choice":
        return _KINDS[answers["kind"]].format(tolerance=f"{100 * answers['tolerance']:g} %")
    if answers["options"]:
        return f"Each reply is one of {len(answers['options']):,} classes."
    return "Each reply is the letter of one of the row's options."


# --- the verdict ------------------------------------------------------------------------------------------------------


def evolves(report: Report) -> bool:
    """Whether unlabeled rows were learned from; without them a run is plain fine-tuning."""
    return "semievol" in report["accuracy"]


def models(report: Report) -> list[tuple[str, str]]:
    """Key and name of each model that was measured, in order."""
    return [(key, name) for key, name in MODELS.items() if key in report["accuracy"]]


def headline(report: Report) -> str:
    """The outcome in one sentence."""
    sft = report["accuracy"]["sft"]
    if not evolves(report):
        base = percent(report["accuracy"]["base"]["value"])
        return f"Fine-tuned on the labels: {percent(sft['value'])} right against the base model's {base}."
    evolved = report["accuracy"]["semievol"]
    points = 100 * (evolved["value"] - sft["value"])
    figures = f"{percent(evolved['value'])} against {percent(sft['value'])}"
    if report["flips"]["p_value"] >= 0.05:
        return f"SemiEvol and plain fine-tuning cannot be told apart on {count(sft['n'], 'row')}: {figures} right."
    verb = "beats" if points > 0 else "is worse than"
    return f"SemiEvol {verb} plain fine-tuning by {abs(points):.1f} points: {figures} right."


def figures(report: Report) -> list[tuple[str, str]]:
    """The four figures to remember, with what they are."""
    measured = report["accuracy"]
    delivered_value = measured[report["delivered"]]["value"]
    last, against, name = ("semievol", "sft", "SFT") if evolves(report) else ("sft", "base", "the base model")
    points = 100 * (measured[last]["value"] - measured[against]["value"])
    seconds = sum(one.seconds for one in stage_costs(report))
    rows = ("Labeled rows", f"{report['rows']['labeled']:,}")
    if evolves(report):
        kept, rejected = report["decisions"]["accept"], report["decisions"]["reject"]
        rows = ("Pseudo-labels accepted", f"{kept:,} of {kept + rejected:,}")
    return [
        ("Right, as delivered", percent(delivered_value)),
        (f"{MODELS[last].partition(' (')[0]} minus {name}", f"{points:+.1f} points"),
        rows,
        ("Time", duration(seconds)),
    ]


def measured_on(report: Report) -> str:
    """Which rows the accuracies come from, and what that means for them."""
    rows = count(report["accuracy"]["sft"]["n"], "row")
    if report["measured_on"] == "test":
        return f"Measured on the test file ({rows}), which nothing was trained on or chosen by."
    held_out = report["validation"]["held_out"]
    source = f"{rows} held out of the labeled file" if held_out else f"the validation file ({rows})"
    told = f"Measured on {source}: no test file was given."
    return f"{told} The same rows chose what is delivered, which flatters it." if evolves(report) else told


def flips(report: Report) -> str | None:
    """Rows that changed sides between SFT and SemiEvol, with the paired test; None for plain fine-tuning."""
    if not evolves(report):
        return None
    gained, lost = report["flips"]["gained"], report["flips"]["lost"]
    return (
        f"SemiEvol is right on {count(gained, 'row')} that SFT gets wrong, and wrong on {lost:,} that SFT gets right "
        f"(McNemar's exact test, {p_value(report['flips']['p_value'])})."
    )


def steps(report: Report) -> str | None:
    """A word on unequal training, where SemiEvol's last stage took many more steps than SFT; None where it did not."""
    if not evolves(report):
        return None
    sft, evolved = report["training"]["warmup"]["steps"], report["training"]["evolution"]["steps"]
    if evolved < 1.5 * sft:
        return None
    return (
        f"SFT trained for {count(sft, 'step')} and SemiEvol's last stage for {evolved:,}: that can be part of a gain."
    )


def delivered(report: Report) -> str:
    """Which adapter is handed out, and why."""
    if not evolves(report):
        return "The fine-tuned adapter is delivered: without unlabeled rows it is the only one."
    validation = report["validation"]
    sft, evolved = validation["sft"], validation["semievol"]
    figures = f"{percent(evolved['value'])} against SFT's {percent(sft['value'])}"
    rows = f"{count(sft['n'], 'validation row')}"
    if validation["held_out"]:
        rows += " held out of the labeled file"
    if report["delivered"] == "sft":
        return (
            f"The SFT adapter is delivered: SemiEvol's validates worse, {figures}, on {rows}. "
            "Set evaluation.deliver=evolved to get SemiEvol's whatever the figures."
        )
    if report["best"] == "sft":
        return (
            f"SemiEvol's adapter is delivered because evaluation.deliver is evolved, although it validates worse: "
            f"{figures}, on {rows}."
        )
    if sft["value"] == evolved["value"]:
        return (
            f"SemiEvol's adapter is delivered: both validate at {percent(sft['value'])} on {rows}, and a tie goes to "
            "SemiEvol."
        )
    return f"SemiEvol's adapter is delivered: it validates better, {figures}, on {rows}."


def caution(report: Report) -> str | None:
    """A warning where the validation rows are too few to choose by; None where they are enough or chose nothing."""
    if not evolves(report):
        return None
    validation = report["validation"]
    rows = validation["sft"]["n"]
    if rows >= FEW_VALIDATION_ROWS or validation["flips"]["p_value"] < 0.05:
        return None
    return (
        f"{count(rows, 'validation row')} cannot tell the two adapters apart, so this choice is mostly chance. "
        f"Give {FEW_VALIDATION_ROWS} or more labeled rows with --validation."
    )


def left_out(report: Report) -> str | None:
    """Which rows of which files were left out because another file holds them; None where none were."""
    found = (report.get("overlaps") or {}).get("left_out", [])
    parts = [f"{_found(one)} also in the {one['also_in']} file" for one in found]
    if not parts:
        return None
    return f"Left out, so that no row is both learned from and measured on or known already: {listed(parts)}."


def worth_a_look(report: Report) -> str | None:
    """Rows that were kept although their file repeats or contradicts itself there; None where none were."""
    overlaps = report.get("overlaps") or {}
    parts = [f"{_found(one)} repeating another of the file" for one in overlaps.get("repeated", [])]
    if one := overlaps.get("contradicting"):
        parts.append(f"{_found(one)} asking the same as another and answered differently")
    return f"Kept as they are: {listed(parts)}." if parts else None


def _found(one: Mapping[str, Any]) -> str:
    """2 labeled rows (lines 3 and 7)."""
    return f"{count(one['rows'], one['role'] + ' row')} ({lines_told(one)})"


def lines_told(one: Mapping[str, Any]) -> str:
    """`rows` and the first `lines` of them as: lines 3, 7 and 2 more."""
    more = one["rows"] - len(one["lines"])
    lines = [*(f"{line:,}" for line in one["lines"]), *([f"{more:,} more"] if more else [])]
    return f"{'line' if one['rows'] == 1 else 'lines'} {listed(lines)}"


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def decisions(report: Report) -> str:
    """How many unlabeled rows became pseudo-labels."""
    accepted, rejected = report["decisions"]["accept"], report["decisions"]["reject"]
    return f"Of {count(accepted + rejected, 'unlabeled row')}, {accepted:,} were accepted and {rejected:,} rejected."


def reasons(report: Report) -> list[tuple[str, int]]:
    """How many unlabeled rows were decided for each reason, in words."""
    return [(reason_words(reason), number) for reason, number in report["reasons"].items()]


def reason_words(reason: str) -> str:
    """Why a row was accepted or rejected, in words."""
    return REASONS.get(reason, reason)


def outcome_words(outcome: str) -> str:
    """How the collaborators came to an answer, in words."""
    return OUTCOMES.get(outcome, outcome)


def measure_words(measure: str) -> str:
    """What rows were ranked by, in words."""
    return MEASURES.get(measure, measure)


def precision(report: Report) -> str:
    """What is known of how many accepted pseudo-labels are right, and how it is known."""
    judged = report.get("review", {}).get("accept")
    if judged is None:
        return (
            "How many of the accepted answers are right is not known: nobody has looked at them. The curve shows what "
            "the model itself believes, which is often too much."
        )
    return (
        f"Of {count(judged['n'], 'selected row')} that a person decided, {percent(judged['value'])} kept the answer "
        f"(95 % interval {interval(judged)}). They chose which rows to look at, so this need not hold for the others. "
        "The curve shows what the model itself believes."
    )


# --- using the adapter ------------------------------------------------------------------------------------------------


def commands(report: Report) -> dict[str, str]:
    """How to `load` the adapter in Python and to `serve` it, where it lies in the folder `adapter`."""
    base = report["provenance"]["inputs"]["model"]
    return {
        "load": "\n".join(load_lines(report, base, "adapter")),
        "serve": " \\\n  ".join(serve_command(report, base, "adapter")),
    }


def load_lines(report: Report, base: str, adapter: str) -> list[str]:
    """Python lines that load the adapter with PEFT, on the base model as it was trained on."""
    quantised = report["recipe"]["model"].get("quantization") == "nf4"
    nf4 = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": report["provenance"].get("dtype", "bfloat16"),
    }
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer" + (", BitsAndBytesConfig" if quantised else ""),
        *([f"nf4 = BitsAndBytesConfig(**{nf4!r})"] if quantised else []),
        f"base = AutoModelForCausalLM.from_pretrained({base!r}{', quantization_config=nf4' if quantised else ''})",
        f"model = PeftModel.from_pretrained(base, {adapter!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({adapter!r})",
    ]


def serve_command(report: Report, base: str, adapter: str) -> list[str]:
    """The command, in parts, that serves base and adapter with vLLM and the template that the adapter learned with."""
    rank = max(report["recipe"][stage]["lora"]["rank"] for stage in report["training"])
    room = next((allowed for allowed in VLLM_RANKS if allowed >= rank), rank)
    return [
        f"vllm serve {shlex.quote(base)}",
        f"--enable-lora --max-lora-rank {room}",
        f"--lora-modules {shlex.quote(f'semievol={adapter}')}",
        f"--chat-template {shlex.quote(f'{adapter}/chat_template.jinja')}",
    ]

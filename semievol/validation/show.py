"""What was found, for people: colours on a terminal, plain text elsewhere, a hundred columns at most."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from semievol import wording
from semievol.validation.checking import SAMPLE_ROWS
from semievol.validation.findings import Findings
from semievol.wording import count, listed

WIDTH = 100
ANSWERS_SHOWN = 12
PROMPT_CHARACTERS = 700
"""Of a long prompt; its middle is left out."""
QUESTION_CHARACTERS = 200
_FATES = {
    "cut": "Too long, so that training cuts the beginning of the prompt",
    "rejected": "Too long to be answered, and rejected",
    "wrong": "Too long to be answered, and counted as wrong",
}
_USES = {
    "labeled": "trained on",
    "unlabeled": "asked",
    "validation": "chosen by",
    "test": "measured on",
}


def show(found: Findings, console: Console, *, full: bool) -> None:
    """Print everything that was found; `full`: every setting, not only those that differ from the defaults."""
    console.width = min(console.width, WIDTH)
    _files(found, console)
    _answers(found, console)
    _overlaps(found, console)
    _lengths(found, console)
    _loss_mask(found, console)
    _worked_examples(found, console)
    _estimate(found, console)
    _settings(found, console, full=full)
    _verdict(found, console)


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _say(console: Console, text: str | Text, style: str = "") -> None:
    console.print(Padding(Text(text, style=style) if isinstance(text, str) else text, (0, 0, 0, 2), expand=False))


def _table(console: Console, columns: Sequence[str], cells: Iterable[Sequence[str]]) -> None:
    """The first column and texts to the left, figures to the right."""
    rows = list(cells)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, column in enumerate(columns):
        figures = place > 0 and all(row[place].replace(",", "").isdigit() or not row[place] for row in rows)
        table.add_column(column, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _files(found: Findings, console: Console) -> None:
    _title(console, "Files")
    rows = []
    for role, file in found["files"].items():
        given, used = ("" if file[key] is None else f"{file[key]:,}" for key in ("rows", "used"))
        use = _USES[role] if used else "" if given else "cannot be used"
        rows.append((role, given, used, use, file["path"]))
    if found["held_out"]:
        rows.append(("(held out)", "", f"{found['held_out']:,}", _USES["validation"], "of the labeled rows"))
    _table(console, ("", "Rows", "Used", "", "File"), rows)


def _answers(found: Findings, console: Console) -> None:
    answers = found["answers"]
    if answers is None:
        return
    _title(console, "Answers")
    decided = found["recipe"]["answers"]["kind"] == "auto"
    how = "as the labeled rows show" if decided else "as the recipe says"
    bare = ", and every labeled reply is nothing but its answer" if answers["bare"] else ""
    _say(console, f"{answers['kind']}, {how}{bare}.")
    if answers["mix"]:
        total = sum(answers["mix"].values())
        shown = list(answers["mix"].items())[:ANSWERS_SHOWN]
        parts = [f"{answer} {rows:,} ({100 * rows / total:.0f} %)" for answer, rows in shown]
        more = len(answers["mix"]) - len(shown)
        _say(console, ", ".join([*parts, *([f"{more:,} more"] if more else [])]))


def _overlaps(found: Findings, console: Console) -> None:
    if found["overlaps"] is None:
        return
    _title(console, "Rows that occur twice")
    said = [told for told in (wording.left_out(found), wording.worth_a_look(found)) if told]
    for told in said or ["None, neither between files nor within one."]:
        _say(console, told, "yellow" if said else "")


def _lengths(found: Findings, console: Console) -> None:
    if not found["lengths"]:
        return
    _title(console, f"Lengths in tokens (at most {found['limit']:,}, prompt and reply together)")
    rows = [
        (
            f"{role}, with the reply" if role == "labeled" else f"{role}, prompt",
            *(f"{one[name]:,}" for name in ("p50", "p90", "p99", "max")),
        )
        for role, one in found["lengths"].items()
    ]
    _table(console, ("", "Half", "90 %", "99 %", "Longest"), rows)
    for one in found["too_long"]:
        rows_told = f"{count(one['rows'], one['role'] + ' row')} ({wording.lines_told(one)})"
        _say(console, f"{_FATES[one['fate']]}: {rows_told}.", "yellow")
    if any(one["rows"] >= SAMPLE_ROWS for one in found["lengths"].values()):
        _say(console, f"Of each file the first {SAMPLE_ROWS:,} rows were measured.", "dim")


def _loss_mask(found: Findings, console: Console) -> None:
    mask = found["loss_mask"]
    if mask is None:
        return
    trained = sum(seen for _, seen in mask["tokens"])
    _title(console, f"What the model is trained on, line {mask['line']:,} of the labeled file")
    _say(console, _chat(mask["tokens"]))
    tokens = f"{count(len(mask['tokens']), 'token')}; the loss sees the {trained:,} between « and »"
    _say(console, f"{tokens}, and | stands between tokens there.", "dim")


def _chat(tokens: Sequence[tuple[str, bool]]) -> Text:
    """The chat as text, without the middle of a long prompt: what the loss sees is green, and marked without colour."""
    drawn, prompt = Text(), ""
    seen: list[str] = []

    def flush() -> None:
        nonlocal prompt
        if len(prompt) > PROMPT_CHARACTERS:
            half = PROMPT_CHARACTERS // 2
            prompt = f"{prompt[:half]} … {prompt[-half:]}"
        drawn.append(prompt, style="dim")
        if seen:
            drawn.append(f"«{'|'.join(seen)}»", style="bold green")
        prompt = ""
        seen.clear()

    for text, trained in tokens:
        if trained:
            seen.append(text)
            continue
        if seen:
            flush()
        prompt += text
    flush()
    return drawn


def _worked_examples(found: Findings, console: Console) -> None:
    shown = found["worked_examples"]
    if shown is None:
        return
    _title(console, "Worked examples that an unlabeled row would get")
    if "missing" in shown:
        _say(console, f"None are shown here: {shown['missing']}.", "dim")
        return
    _say(console, f"line {shown['line']:,}: {_short(shown['question'])}")
    cells = (
        (f"{one['similarity']:.3f}", f"{one['line']:,}", _short(one["question"]), _short(one["reply"]))
        for one in shown["found"]
    )
    _table(console, ("Alike", "Line", "Labeled row", "Answer"), cells)
    _say(console, f"The most alike first, by {shown['retriever']}.", "dim")


def _estimate(found: Findings, console: Console) -> None:
    told = found["estimate"]
    if told is None:
        return
    _title(console, "What a run takes")
    _say(console, wording.foretold(told))
    rows = [
        (wording.stage_label(stage), f"{one['tokens']:,}" if one["tokens"] else "", _expected(one["seconds"]))
        for stage, one in told["stages"].items()
    ]
    _table(console, ("", "Tokens", "Time"), rows)
    if found["recipe"]["rounds"] > 2 and "unlabeled" in found["files"]:
        _say(console, "From the third on a round may not be needed: each counts half of the one before.", "dim")


def _expected(seconds: float | None) -> str:
    return "" if seconds is None else wording.duration(seconds)


def _settings(found: Findings, console: Console, *, full: bool) -> None:
    changed: Mapping[str, Any] = found["changed"]
    if found["recipe"] is None:
        return
    if full:
        _title(console, "All settings")
        rows = [
            (name, _value(value), _value(changed[name]["default"]) if name in changed else "")
            for name, value in sorted(_flat(found["recipe"]))
        ]
        _table(console, ("Setting", "Value", "Default, where it differs"), rows)
        return
    _title(console, "Settings that differ from the defaults")
    if not changed:
        _say(console, "None.")
        return
    for source in dict.fromkeys(one["source"] for one in changed.values()):
        _say(console, f"from {source}:")
        cells = (
            (name, _value(one["value"]), _value(one["default"]))
            for name, one in changed.items()
            if one["source"] == source
        )
        _table(console, ("Setting", "Value", "Default"), cells)


def _verdict(found: Findings, console: Console) -> None:
    console.print()
    if found["valid"]:
        console.print(
            Text("Nothing is wrong. The same options with `semievol run` and --output start the run.", "green")
        )
        return
    console.print(Rule(style="red", characters="-"))
    for fault in found["problems"]:
        _fault(fault, console)
    total = count(sum(fault["total"] for fault in found["problems"]), "problem")
    places = count(len(found["problems"]), "place")
    console.print(Text(f"{total} in {places}. Nothing was started.", "red"))


def _fault(fault: Mapping[str, Any], console: Console) -> None:
    """What is wrong in one place, the same thing on many lines in one line."""
    if fault["where"] in ("recipe", "model"):
        for problem in fault["problems"]:
            console.print(Text(problem["message"], "bold red"))
        return
    console.print(Text(f"{fault['where']} cannot be used:", "bold red"))
    lines: dict[str, list[int]] = {}
    for problem in fault["problems"]:
        lines.setdefault(problem["message"], []).append(problem["line"])
    for message, numbers in lines.items():
        where = f"{'line' if len(numbers) == 1 else 'lines'} {listed(_ranges(numbers))}: " if any(numbers) else ""
        _say(console, f"{where}{message}")
    if more := fault["total"] - len(fault["problems"]):
        _say(console, f"… and {more:,} more")


def _ranges(numbers: Sequence[int]) -> list[str]:
    """1, 2, 3 and 5 as 1-3 and 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [f"{run[0]:,}" if len(run) == 1 else f"{run[0]:,}-{run[-1]:,}" for run in runs]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return found


def _value(value: Any) -> str:
    """As a recipe writes it."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= QUESTION_CHARACTERS else plain[: QUESTION_CHARACTERS - 1] + "…"

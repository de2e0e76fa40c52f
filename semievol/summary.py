"""What is printed when a run is done: the table, what was delivered and why, and where everything lies."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from semievol import wording
from semievol.wording import Report


def show(report: Report, output: Path, console: Console) -> None:
    """Print the summary of a finished run."""
    console.print()
    console.print(accuracy_table(report))
    _say(console, wording.measured_on(report))
    for told in (wording.flips(report), wording.steps(report)):
        if told:
            _say(console, told)
    console.print()
    _say(console, wording.delivered(report), style="bold")
    if caution := wording.caution(report):
        _say(console, f"Caution: {caution}", style="yellow")
    console.print()
    for told in (wording.left_out(report), wording.worth_a_look(report)):
        if told:
            _say(console, told)
    if wording.evolves(report):
        _show_decisions(report, console)
    seconds = wording.stage_seconds(report)
    _say(console, f"Time: {wording.duration(sum(taken for _, taken in seconds))}")
    for label, taken in seconds:
        _say(console, f"  {wording.duration(taken):>9}  {label}")
    if told := wording.came_true(report):
        _say(console, told)
    console.print()
    _show_files(report, output, console)


def accuracy_table(report: Report) -> Table:
    """The measured models with their intervals."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("Accuracy", "95 % interval", "Rows"):
        table.add_column(column, justify="right")
    for key, name in wording.models(report):
        accuracy: dict[str, Any] = report["accuracy"][key]
        figures = (wording.percent(accuracy["value"]), wording.interval(accuracy), f"{accuracy['n']:,}")
        table.add_row(name, *figures, style="bold" if key == report["delivered"] else "")
    return table


def _show_decisions(report: Report, console: Console) -> None:
    _say(console, wording.decisions(report))
    for reason, number in wording.reasons(report):
        _say(console, f"  {number:>9,}  {reason}")
    console.print()


def _show_files(report: Report, output: Path, console: Console) -> None:
    base, adapter = report["provenance"]["inputs"]["model"], str(output / "adapter")
    for label, name in (
        ("Adapter", "adapter"),
        ("Pseudo-labels", "pseudo_labels.parquet"),
        ("Report", "report.html"),
        ("Figures", "report.json"),
    ):
        if label != "Pseudo-labels" or wording.evolves(report):
            _say(console, f"{label + ':':<14} {output / name}")
    console.print()
    _say(console, "Load the adapter in Python:")
    for line in wording.load_lines(report, base, adapter):
        _say(console, f"  {line}")
    _say(console, "or serve it (model name semievol):")
    _say(console, "  " + " ".join(wording.serve_command(report, base, adapter)))


def _say(console: Console, text: str, style: str = "") -> None:
    """Print text as it is: brackets in paths are no markup, and commands stay on one line to be copied."""
    console.print(Text(text, style=style), soft_wrap=True)

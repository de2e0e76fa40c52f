"""Shows a run while it goes on: a live line on a terminal, plain lines elsewhere, nothing where nobody looks.

`Tracker` turns what stages report into figures (rows, rate, time left) and joins the shards of a round; the observers
only print them.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from semievol.ports import Observer
from semievol.wording import MODELS, count, counted, duration, loss_words, percent, shard_of, stage_label

RATE_WINDOW_SECONDS = 30.0
BURST_SECONDS = 1.0
"""A batch reports all its rows at once: reports closer than this are one."""
BAR_MIN_WIDTH = 100
"""Terminals narrower than this get no bar: the figures matter more."""

Clock = Callable[[], float]


class Display(Observer, AbstractContextManager["Display"], Protocol):
    """An observer that may hold the terminal while it is entered."""


class View:
    """What is shown of the running stage."""

    def __init__(self, label: str, unit: str, total: int, shards: int, now: float) -> None:
        self.label, self.unit, self.total, self.shards = label, unit, total, shards
        self.done = 0
        self.loss: float | None = None
        """Of a training, the newest that was logged."""
        self.shard = 1
        self.resumed_rows = 0
        self.started = now
        self.samples = deque([(now, 0)])

    def advance(self, done: int, now: float) -> None:
        """`done` rows or steps are finished."""
        self.done = done
        if len(self.samples) > 1 and now - self.samples[-1][0] < BURST_SECONDS:
            self.samples[-1] = (self.samples[-1][0], done)
        else:
            self.samples.append((now, done))
        while now - self.samples[0][0] > RATE_WINDOW_SECONDS and len(self.samples) > 2:
            self.samples.popleft()

    def skip(self, done: int) -> None:
        """An earlier run did all up to `done`."""
        self.resumed_rows += done - self.done
        self.done = done

    def measure_from(self, now: float) -> None:
        """Forget the rate so far: what lies between two shards (justification, loading) is not the next one's."""
        self.samples = deque([(now, self.done)])

    def rate(self) -> float | None:
        """Rows or steps a second over the last half minute; None until that means something."""
        (first, before), (last, after) = self.samples[0], self.samples[-1]
        return (after - before) / (last - first) if last - first >= BURST_SECONDS / 2 and after > before else None

    def title(self) -> str:
        """The stage's name, with the shard where there are several."""
        return f"{self.label}, shard {self.shard} of {self.shards}" if self.shards > 1 else self.label

    def figures(self) -> str:
        """Rows, rate and time left, and of a training its loss: `8/40 steps, 3.1 steps/s, 0:10 left, loss 0.512`."""
        if not self.total:
            return ""
        parts = [f"{self.done:,}/{self.total:,} {self.unit}s"]
        if rate := self.rate():
            parts.append(_rate(rate, self.unit))
            if self.done < self.total:
                parts.append(f"{_clock((self.total - self.done) / rate)} left")
        if self.loss is not None:
            parts.append(loss_words(self.loss))
        return ", ".join(parts)


class Tracker:
    """Follows a run by what its stages report."""

    def __init__(self, shard_rows: int, clock: Clock = time.monotonic) -> None:
        self.shard_rows, self.clock = shard_rows, clock
        self.view: View | None = None
        self.pending = 0

    def started(self, stage: str) -> bool:
        """A stage begins; tells whether it is a new line, rather than the next shard of the same one."""
        shard = shard_of(stage)
        if shard and self.view:
            self.view.shard = shard + 1
            self.view.measure_from(self.clock())
            return False
        rows = self.pending if shard is not None else 0
        shards = -(-rows // self.shard_rows) or 1
        self.view = View(stage_label(stage), counted(stage), rows, shards, self.clock())
        return True

    def progressed(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """`done` of the stage's `total` rows or steps are finished; `loss`: of that step, where one was logged."""
        view, shard = self._view(stage), shard_of(stage)
        view.loss = view.loss if loss is None else loss
        if shard is None:
            view.total = total
        view.advance(done + (shard or 0) * self.shard_rows, self.clock())

    def finished(self, stage: str, facts: Mapping[str, Any], *, resumed: bool) -> bool:
        """A stage is committed; tells whether its line is finished too."""
        view, shard = self._view(stage), shard_of(stage)
        if stage == "prepare":
            self.pending = facts["rows"]["unlabeled"]
        elif stage.endswith("/select"):
            self.pending = facts["pending"]
        if shard is None:
            view.resumed_rows = int(resumed)
            return True
        reached = min(view.total, (shard + 1) * self.shard_rows)
        if resumed:
            view.skip(reached)
        else:
            view.done = reached
        return shard + 1 >= view.shards

    def _view(self, stage: str) -> View:
        assert self.view is not None, f"{stage} was not started"
        return self.view


def result(stage: str, facts: Mapping[str, Any], view: View, now: float) -> str:
    """What a finished stage came to, in a few words."""
    parts = [_outcome(stage, facts, view)]
    if view.resumed_rows and view.resumed_rows >= view.done:
        parts.append("done by an earlier run")
    else:
        parts.append(f"{view.resumed_rows:,} of them by an earlier run" if view.resumed_rows else "")
        parts.append(duration(now - view.started))
    return ", ".join(filter(None, parts))


def _outcome(stage: str, facts: Mapping[str, Any], view: View) -> str:
    if "accuracy" in facts:
        accuracy = facts["accuracy"]
        return f"{percent(accuracy['value'])} of {count(accuracy['n'], 'row')} right"
    if "delivered" in facts:
        return f"{MODELS[facts['delivered']]} is delivered"
    if "decisions" in facts:
        return f"{facts['decisions']['accept']:,} accepted, {facts['decisions']['reject']:,} rejected"
    if "losses" in facts:
        loss = f", {loss_words(facts['losses'][-1][1])}" if facts["losses"] else ""
        return f"{count(facts['rows'], 'row')}, {count(facts['steps'], 'step')}{loss}"
    if stage == "prepare":
        left_out = sum(one["rows"] for one in (facts.get("overlaps") or {}).get("left_out", []))
        numbers = facts["rows"] | {"left out": left_out}
        return ", ".join(f"{number:,} {role}" for role, number in numbers.items() if number)
    return count(view.total, view.unit) if view.total else ""


def _rate(per_second: float, unit: str) -> str:
    if per_second >= 10:
        return f"{per_second:,.0f} {unit}s/s"
    if per_second >= 0.5:
        return f"{per_second:.1f} {unit}s/s"
    return f"{per_second * 60:.1f} {unit}s/min"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# --- observers --------------------------------------------------------------------------------------------------------


class Silent:
    """Prints nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def stage_started(self, stage: str) -> None:
        """See `ports.Observer`."""

    def stage_progress(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """See `ports.Observer`."""

    def stage_finished(self, stage: str, facts: dict[str, Any], *, resumed: bool) -> None:
        """See `ports.Observer`."""


class Lines(Silent):
    """One line when a stage or shard begins and ends: for logs and pipes."""

    def __init__(self, console: Console, shard_rows: int, clock: Clock = time.monotonic) -> None:
        self.console, self.tracker, self.clock = console, Tracker(shard_rows, clock), clock

    def stage_started(self, stage: str) -> None:
        """See `ports.Observer`."""
        if self.tracker.started(stage) and self.tracker.view:
            self._print(f"{self.tracker.view.label} ...")

    def stage_progress(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """See `ports.Observer`."""
        self.tracker.progressed(stage, done, total, loss)

    def stage_finished(self, stage: str, facts: dict[str, Any], *, resumed: bool) -> None:
        """See `ports.Observer`."""
        last = self.tracker.finished(stage, facts, resumed=resumed)
        view = self.tracker.view
        assert view is not None
        if last:
            self._print(f"{view.label}: {result(stage, facts, view, self.clock())}")
        elif not resumed:
            self._print(f"{view.title()}: {view.figures()}")

    def _print(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


class Bars(Silent):
    """A line that moves for the running stage, and above it one for each finished stage: for terminals."""

    def __init__(self, console: Console, shard_rows: int, clock: Clock = time.monotonic) -> None:
        self.console, self.tracker, self.clock = console, Tracker(shard_rows, clock), clock
        self.spinner = Spinner("dots" if console.encoding.startswith("utf") else "line")
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=5, transient=True)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def stage_started(self, stage: str) -> None:
        """See `ports.Observer`."""
        self.tracker.started(stage)

    def stage_progress(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """See `ports.Observer`."""
        self.tracker.progressed(stage, done, total, loss)

    def stage_finished(self, stage: str, facts: dict[str, Any], *, resumed: bool) -> None:
        """See `ports.Observer`."""
        last, view = self.tracker.finished(stage, facts, resumed=resumed), self.tracker.view
        if last and view:
            mark = Text("✓ " if self.console.encoding.startswith("utf") else "* ", style="green")
            note = Text(result(stage, facts, view, self.clock()), style="dim")
            self.tracker.view = None
            self.live.refresh()
            self.console.print(mark + Text(f"{view.label}  ") + note, soft_wrap=True)

    def _render(self) -> RenderableType:
        view = self.tracker.view
        if view is None:
            return Text()
        row: list[RenderableType] = [self.spinner, Text(view.title(), no_wrap=True, overflow="ellipsis")]
        if view.total and self.console.width >= BAR_MIN_WIDTH:
            row.append(ProgressBar(total=view.total, completed=view.done, width=24))
        row.append(Text(view.figures(), style="cyan", no_wrap=True))
        grid = Table.grid(padding=(0, 1))
        grid.add_row(*row)
        return grid


def display(console: Console, shard_rows: int, *, quiet: bool) -> Display:
    """The observer that fits where the output goes."""
    if quiet:
        return Silent()
    return Bars(console, shard_rows) if console.is_terminal else Lines(console, shard_rows)

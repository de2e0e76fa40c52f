"""Follows a job of the service: the words and figures of `semievol run`, out of what the API tells.

The event stream says how far the stages are and what happened. It is taken up again after a break by the last event's
id; while there is none, the job object is asked for once a second.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from semievol import progress
from semievol.client import JOBS, Client, Json, Refused, ServerEvent, Unreachable, decode
from semievol.wording import counted, stage_label

FINAL = ("succeeded", "failed", "cancelled")
POLL_SECONDS = 1.0
SILENT_SECONDS = 20.0
"""Longer than the stream's heartbeats: after this the job is asked for."""
LONGEST_PAUSE_SECONDS = 10.0
PATIENCE_SECONDS = 300.0
"""How long a server may be away before following it is given up."""
WAITING = {"validating_files": "The files wait for a worker to check them", "queued": "Waiting for a worker"}


@dataclass(frozen=True, slots=True)
class Line:
    """A stage as one line; the API has joined the shards of a round."""

    name: str
    label: str
    noun: str
    state: str
    done: int
    total: int
    seconds: float
    facts: Mapping[str, Any]


def lines_of(job: Json) -> list[Line]:
    """The job's stages in order. Pure.

    Without those that have no name for people: a unit that has not said yet what it does, and the packing of files.
    """
    lines = [
        Line(
            name=str(stage["name"]),
            label=stage_label(str(stage["name"])),
            noun=counted(str(stage["name"])),
            state=str(stage.get("state")),
            done=int(stage.get("done") or 0),
            total=int(stage.get("total") or 0),
            seconds=float(stage.get("seconds") or 0),
            facts=stage.get("facts") or {},
        )
        for stage in job["semievol"].get("stages") or []
    ]
    return [line for line in lines if line.label != line.name]


def outcome_facts(line: Line, last_loss: tuple[int, float] | None = None) -> dict[str, Any]:
    """Those facts of a stage that make a sentence, where they are whole. Pure.

    `last_loss`: (step, nats per token) of a training; the job object has none.
    """
    facts = {name: line.facts[name] for name in ("accuracy", "delivered", "decisions") if line.facts.get(name)}
    if {"rows", "steps"} <= line.facts.keys():
        losses = [last_loss] if last_loss else []
        facts |= {"losses": losses, "rows": line.facts["rows"], "steps": line.facts["steps"]}
    if line.name == "prepare":
        facts["rows"] = line.facts.get("rows") or {}
    return facts


# --- showing ----------------------------------------------------------------------------------------------------------


class Board:
    """Prints what is new in a job object and in its events, and nothing twice."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.display = progress.Bars(console, 1) if console.is_terminal else progress.Lines(console, 1)
        self.said: set[str] = set()
        self.losses: dict[str, tuple[int, float]] = {}
        """Step and loss that were heard last of each training."""
        self.status = ""

    def show(self, job: Json) -> None:
        """The job as it is now."""
        lines = lines_of(job)
        for line in lines:
            if line.state == "done" and line.name not in self.said:
                self.said.add(line.name)
                self._finished(line)
        self._running(next((line for line in lines if line.state == "running"), None))
        self._status(job, lines)

    def told(self, event: Json) -> None:
        """An event of the job: warnings and errors are printed, losses kept, the rest shows in the job itself."""
        data = event.get("data")
        if event.get("type") == "metrics" and isinstance(data, dict) and {"stage", "step", "train_loss"} <= data.keys():
            self.losses[str(data["stage"])] = (int(data["step"]), float(data["train_loss"]))
        if event.get("level") in ("warn", "error"):
            self.say(str(event.get("message", "")), style="yellow")

    def say(self, text: str, style: str = "") -> None:
        """A line of its own."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def _running(self, line: Line | None) -> None:
        tracker = self.display.tracker
        if line is None:
            tracker.view = None
            return
        now = self.clock()
        if tracker.view is None or tracker.view.label != line.label:
            tracker.view = progress.View(line.label, line.noun, line.total, 1, now)
            tracker.view.skip(line.done)
            tracker.view.measure_from(now)
            if not self.console.is_terminal:
                self.once(f"{line.label} ...")
        tracker.view.total = line.total
        _, tracker.view.loss = self.losses.get(line.name, (0, None))
        if line.done > tracker.view.done:
            tracker.view.advance(line.done, now)

    def _finished(self, line: Line) -> None:
        tracker, now = self.display.tracker, self.clock()
        if tracker.view is not None and tracker.view.label == line.label:
            tracker.view = None
        total = line.total if line.noun == "shard" else 0  # of a stage that is done, the facts say more than 1/1
        view = progress.View(line.label, line.noun, total, 1, now - line.seconds)
        note = progress.result(line.name, outcome_facts(line, self.losses.get(line.name)), view, now)
        if self.console.is_terminal:
            mark = Text("✓ " if self.console.encoding.startswith("utf") else "* ", style="green")
            self.console.print(mark + Text(f"{line.label}  ") + Text(note, style="dim"), soft_wrap=True)
        else:
            self.say(f"{line.label}: {note}")

    def _status(self, job: Json, lines: list[Line]) -> None:
        if (job["semievol"].get("review") or {}).get("waiting"):
            self.once(f"The pseudo-labels wait for a review. To go on: semievol jobs review {job['id']} --complete")
        if job["status"] == self.status:
            return
        self.status = job["status"]
        if self.status == "paused":
            self.say(f"Paused. To go on: semievol jobs resume {job['id']}")
        elif self.status in WAITING and all(line.state == "ready" for line in lines):
            self.say(f"{WAITING[self.status]} ...")

    def once(self, text: str) -> None:
        """A line that is said the first time only."""
        if text not in self.said:
            self.said.add(text)
            self.say(text)


# --- following --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Listener:
    """A thread that reads the event stream into a queue, again and again, until the job is over."""

    url: str
    key: str
    job_id: str
    heard: "queue.SimpleQueue[ServerEvent]" = field(default_factory=queue.SimpleQueue)
    over: threading.Event = field(default_factory=threading.Event)
    alive: bool = False

    def start(self) -> None:
        """Begin to listen. The thread ends with the process, or soon after `over` is set."""
        threading.Thread(target=self._listen, daemon=True, name="events").start()

    def next(self) -> ServerEvent | None:
        """What was heard next; None if there was nothing for a while, a short one where there is no stream."""
        try:
            return self.heard.get(timeout=SILENT_SECONDS if self.alive else POLL_SECONDS)
        except queue.Empty:
            return None

    def _listen(self) -> None:
        last: str | None = None
        pause = POLL_SECONDS
        while not self.over.is_set():
            try:
                with Client(self.url, self.key) as client:
                    for event in client.events(self.job_id, last):
                        self.alive, last, pause = True, event.id or last, POLL_SECONDS
                        self.heard.put(event)
                        if self.over.is_set():
                            return
            except Refused:
                return  # no stream here: the job object has to do
            except Unreachable:
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            finally:
                self.alive = False
            self.over.wait(pause)


def follow(client: Client, key: str, job_id: str, console: Console) -> Json:
    """Show the job until it is over; returns it. Raises ServiceError."""
    job = client.get(f"{JOBS}/{job_id}")
    listener, board = Listener(client.url, key, job_id), Board(console)
    listener.start()
    try:
        with board.display:
            board.show(job)
            while job["status"] not in FINAL:
                job = _next(client, job, listener, board)
                board.show(job)
    finally:
        listener.over.set()
    return job


def _next(client: Client, job: Json, listener: Listener, board: Board) -> Json:
    """The job after the next thing that was heard of it."""
    event = listener.next()
    if event is not None and event.name == "progress":
        return job | {"semievol": decode(event)}
    told = decode(event) if event is not None else {}
    board.told(told)
    moved = isinstance(told.get("data"), dict) and "status" in told["data"]
    return _patiently(client, job["id"], board) if moved or event is None else job


def wait(client: Client, job_id: str) -> Json:
    """The job when it is over, without a word. Raises ServiceError."""
    job = client.get(f"{JOBS}/{job_id}")
    while job["status"] not in FINAL:
        time.sleep(POLL_SECONDS)
        job = _patiently(client, job_id, None)
    return job


def _patiently(client: Client, job_id: str, board: Board | None) -> Json:
    """The job object; a server that is away for a while is waited for."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return client.get(f"{JOBS}/{job_id}")
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            if board is not None:
                board.once("The service does not answer; waiting for it ...")
            time.sleep(POLL_SECONDS)

"""`python -m demo` (or `make demo`): generate the example task, run a job on it, and use the adapter.

The job goes through the service, as a user's would: `semievol serve` and the `openai` client. `--direct` runs the same
without a service, by `semievol run`. Every start is a fresh run: the output of an earlier demo is removed, and nothing
else ever is.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo import generate
from demo.tasks import HELPDESK
from semievol.cli import main as semievol
from semievol.errors import SemiEvolError
from semievol.signals import Terminated, exit_code_of, stoppable
from semievol.workdir import IDENTITY

BASE = Path(__file__).parent / "base"
OUTPUT = Path("demo-output")
SERVICE = OUTPUT / "service"
SEED = 7
LABELED, UNLABELED, TEST = 32, 800, 800
TICKETS_SHOWN = 3
MAX_NEW_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Ticket:
    """A test ticket, what both models answer, and the truth."""

    text: str
    base: str
    adapted: str
    truth: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Run the bundled example.")
    parser.add_argument("--direct", action="store_true", help="without the service: semievol run")
    direct = parser.parse_args(arguments).direct
    try:
        start_over(OUTPUT)
    except FileExistsError as error:
        print(error, file=sys.stderr)
        return 2
    # A model this small gains nothing from more threads, and one thread gives the same sums on every machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    data, run = OUTPUT / "data", OUTPUT / "run"
    drawn = generate.draw(HELPDESK, SEED, LABELED, UNLABELED, TEST)
    generate.write(data, HELPDESK, drawn)
    print(f"Help-desk tickets for eight queues: {LABELED} with their queue, {UNLABELED} without, {TEST} to test on.\n")
    if code := (run_directly if direct else run_through_service)(data, run):
        return code
    print(what_it_is())
    print(tickets_text(answer_tickets(run / "adapter", data / "test.jsonl")))
    print(own_files() if direct else own_service())
    return 0


def run_directly(data: Path, run: Path) -> int:
    """The job by `semievol run`; returns the exit code."""
    command = run_arguments(data, run)
    print(f"$ semievol {shlex.join(command)}\n", flush=True)
    return semievol(command)


def run_through_service(data: Path, run: Path) -> int:
    """The job through a service of the demo's own; returns the exit code."""
    from rich.console import Console

    from demo import through_service

    console = Console(highlight=False)
    print(f"$ semievol serve --port 0 --data {SERVICE}", flush=True)
    files = {role: data / f"{role}.jsonl" for role in ("labeled", "unlabeled", "test")}
    try:
        with stoppable(), through_service.service(SERVICE) as service:
            console.print(f"The service answers at {service.url}; the openai client does the rest.\n", soft_wrap=True)
            report = through_service.run(service, files, SEED, run, console)
    except (through_service.ServiceFailed, SemiEvolError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Terminated) as stop:
        print("Stopped, and the service with it.", file=sys.stderr)
        return exit_code_of(stop)
    through_service.show(report, run, console)
    return 0


def start_over(output: Path) -> None:
    """Remove what an earlier demo left. Raises FileExistsError if the folder holds anything else."""
    if not output.exists():
        return
    names = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
    run = output / "run"
    marks = (run / "stages" / IDENTITY, output / "service" / "admin.key", output / "service" / "service.log")
    marked = any(mark.is_file() for mark in marks)
    if not names <= {"data", "run", "service"} or (names & {"run", "service"} and not marked):
        raise FileExistsError(f"{output} is not an earlier demo's; move it away or run the demo in another folder")
    shutil.rmtree(output)


def run_arguments(data: Path, run: Path) -> list[str]:
    """The command line of the demo's run."""
    base = BASE.relative_to(Path.cwd()) if BASE.is_relative_to(Path.cwd()) else BASE
    return [
        "run",
        f"--model={base}",
        f"--labeled={data / 'labeled.jsonl'}",
        f"--unlabeled={data / 'unlabeled.jsonl'}",
        f"--test={data / 'test.jsonl'}",
        f"--seed={SEED}",
        f"--output={run}",
    ]


def what_it_is() -> str:
    """What the table above shows and what it does not."""
    return """
What this demo is
  A task built for this loop: a ticket's queue hangs on single words, 32 labels name only a few of them, and the
  retrieval model (MiniLM) knows which words are alike. So retrieval knows what the labels do not say, and SemiEvol
  brings that into the weights. The base model has 1-2 million parameters and was trained for this demo to read worked
  examples, never with these queues or their cue words as topic or answer. Expect smaller gains where retrieval knows
  less or the model knows more.
"""


def answer_tickets(adapter: Path, test: Path) -> list[Ticket]:
    """The first test tickets, answered greedily by the base model and by the adapter, loaded as any PEFT adapter is."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no bars between the demo's own lines
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), str(adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)

    def reply(messages: list[dict[str, str]]) -> str:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            written = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_NEW_TOKENS
            )
        return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)).strip()

    tickets = []
    for line in test.read_text(encoding="utf-8").splitlines()[:TICKETS_SHOWN]:
        *prompt, truth = json.loads(line)["messages"]
        with model.disable_adapter():
            base = reply(prompt)
        tickets.append(Ticket(prompt[-1]["content"], base, reply(prompt), truth["content"]))
    return tickets


def tickets_text(tickets: list[Ticket]) -> str:
    """The tickets as they are printed."""
    lines = [f"The first {len(tickets)} test tickets, with PeftModel.from_pretrained(base, '{OUTPUT / 'run/adapter'}')"]
    for ticket in tickets:
        lines += [
            f"  Ticket:  {ticket.text}",
            f"  Base:    {ticket.base}",
            f"  Adapter: {ticket.adapted}",
            f"  Truth:   {ticket.truth}",
            "",
        ]
    return "\n".join(lines)


def own_service() -> str:
    """How to do the same with other data, through a service."""
    command = Path(sys.executable).parent / "semievol"
    return f"""With your own files
  SEMIEVOL_MODELS='{{"mine": {{"source": "FOLDER_OR_HUB_ID"}}}}' {command} serve
  starts a service with a model of yours; it prints a key and five lines of Python. Without Python, beside it:
  {command} jobs submit --model mine --labeled labeled.jsonl --unlabeled unlabeled.jsonl \\
      --test test.jsonl --output DIR
  The files of this run, in {OUTPUT / "data"}, show the format. `python -m demo --direct` does without a service.
"""


def own_files() -> str:
    """How to do the same with other data."""
    return f"""With your own files
  {Path(sys.executable).parent / "semievol"} run --model FOLDER_OR_HUB_ID --labeled labeled.jsonl \\
      --unlabeled unlabeled.jsonl --test test.jsonl --output DIR
  The files of this run, in {OUTPUT / "data"}, show the format. `semievol run --help` lists the options.
"""


if __name__ == "__main__":
    sys.exit(main())

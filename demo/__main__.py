"""`python -m demo` (or `make demo`): generate the example task, run the command on it, and use the adapter.

The run itself is `semievol run`, called as a user would call it. Every start is a fresh run: the output of an earlier
demo is removed, and nothing else ever is.
"""

import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from demo import generate
from demo.tasks import HELPDESK
from semievol.cli import main as semievol
from semievol.workdir import IDENTITY

BASE = Path(__file__).parent / "base"
OUTPUT = Path("demo-output")
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


def main() -> int:
    """Run the demo; returns the exit code."""
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
    command = run_arguments(data, run)
    print(f"Help-desk tickets for eight queues: {LABELED} with their queue, {UNLABELED} without, {TEST} to test on.\n")
    print(f"$ semievol {shlex.join(command)}\n", flush=True)
    if code := semievol(command):
        return code
    print(what_it_is())
    print(tickets_text(answer_tickets(run / "adapter", data / "test.jsonl")))
    print(own_files())
    return 0


def start_over(output: Path) -> None:
    """Remove what an earlier demo left. Raises FileExistsError if the folder holds anything else."""
    if not output.exists():
        return
    names = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
    run = output / "run"
    if not names <= {"data", "run"} or (run.exists() and not (run / "stages" / IDENTITY).is_file()):
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


def own_files() -> str:
    """How to do the same with other data."""
    return f"""With your own files
  {Path(sys.executable).parent / "semievol"} run --model FOLDER_OR_HUB_ID --labeled labeled.jsonl \\
      --unlabeled unlabeled.jsonl --test test.jsonl --output DIR
  The files of this run, in {OUTPUT / "data"}, show the format. `semievol run --help` lists the options.
"""


if __name__ == "__main__":
    sys.exit(main())

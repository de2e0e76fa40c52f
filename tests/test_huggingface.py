"""The real generator and trainer on the demo's real tiny model."""

import gc
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from semievol.backends.chat import Chat
from semievol.backends.huggingface import HuggingFaceGenerator, _first, _Times, load_model, open_generator
from semievol.backends.training import LoraTrainer
from semievol.errors import LossDiverged
from semievol.examples import Example
from semievol.fakes import FakeCheckpoints
from semievol.ports import Request, Response, TrainingRow
from semievol.prompts import Message, Prompt
from semievol.recipe import EvolutionSettings, ModelSettings, TrainingSettings
from semievol.seeds import seed_of
from tests.demo_model import BASE, QUICK, SETTINGS, labeled_rows, prompts_of, train_adapter, training_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(BASE, None)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return labeled_rows(tmp_path_factory.mktemp("demo"), 77)


@pytest.fixture(scope="module")
def prompts(labeled: list[Example]) -> list[Prompt]:
    return prompts_of(labeled)


@pytest.fixture(scope="module")
def adapter(labeled: list[Example], chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_adapter(labeled, chat, tmp_path_factory.mktemp("adapter"))


def generate(prompts: list[Prompt], chat: Chat, *, batch_tokens: int, order: list[int]) -> list[list[Response]]:
    generator = HuggingFaceGenerator(load_model(BASE, SETTINGS), chat, 1024, batch_tokens)
    requests = [Request(prompts[i], tuple(seed_of("row", i, sample) for sample in range(4))) for i in order]
    found = dict(generator.generate(requests, max_new_tokens=12))
    return [found[order.index(i)] for i in range(len(prompts))]


@pytest.mark.parametrize("batch_tokens", [1, 1500, 100_000])
def test_order_and_batch_size_change_no_sampled_token(prompts: list[Prompt], chat: Chat, batch_tokens: int) -> None:
    forward = generate(prompts, chat, batch_tokens=8192, order=list(range(len(prompts))))
    shuffled = sorted(range(len(prompts)), key=lambda i: seed_of("shuffle", i))
    other = generate(prompts, chat, batch_tokens=batch_tokens, order=shuffled)
    for row, same in zip(forward, other, strict=True):
        assert [response.text for response in row] == [response.text for response in same]
        for one, two in zip(row, same, strict=True):
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)


def test_what_follows_is_answered_among_the_others_as_if_it_were_asked_alone(prompts: list[Prompt], chat: Chat) -> None:
    """Greedy and sampled rows share a batch, and what came of a row is asked in a batch with rows that waited."""
    generator = HuggingFaceGenerator(load_model(BASE, SETTINGS), chat, 1024, batch_tokens=1500)
    requests = [Request(prompt, (1, 2)) for prompt in prompts]
    followed: dict[int, int] = {}

    def then(index: int, responses: list[Response]) -> list[Request]:
        if index >= len(requests):
            return []
        followed[index] = len(requests) + len(followed)
        return [Request((*prompts[index], Message("user", responses[0].text)), (0,), temperature=0.0)]

    found = list(generator.generate(requests, max_new_tokens=12, then=then))
    order = [index for index, _ in found]
    assert sorted(order) == list(range(2 * len(requests)))
    assert order != sorted(order)
    together, alone = dict(found), dict(generator.generate(requests, max_new_tokens=12))
    for index, after in followed.items():
        assert [one.text for one in together[index]] == [one.text for one in alone[index]]
        request = Request((*prompts[index], Message("user", alone[index][0].text)), (0,), temperature=0.0)
        ((_, (one,)),) = generator.generate([request], max_new_tokens=12)
        assert together[after][0].text == one.text


def test_samples_of_a_row_differ_and_follow_their_seeds(prompts: list[Prompt], chat: Chat) -> None:
    generator = HuggingFaceGenerator(load_model(BASE, SETTINGS), chat, 1024)
    requests = [Request(prompts[0], tuple(range(100)))]
    ((_, drawn),) = generator.generate(requests, max_new_tokens=4)
    ((_, again),) = generator.generate(requests, max_new_tokens=4)
    assert drawn == again
    assert len({response.text for response in drawn}) > 1


def test_samples_follow_the_models_probabilities(prompts: list[Prompt], chat: Chat) -> None:
    """The first token of many samples is distributed as the model says (chi-square on the likeliest tokens)."""
    model = load_model(BASE, SETTINGS)
    generator = HuggingFaceGenerator(model, chat, 1024)
    draws = 4000
    ((_, drawn),) = generator.generate([Request(prompts[3], tuple(range(draws)))], max_new_tokens=1)
    ids = torch.tensor([chat.prompt_ids(prompts[3])])
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[0, -1].softmax(dim=-1)
    counts: dict[float, int] = {}
    for response in drawn:
        key = round(response.logprobs[0], 4)
        counts[key] = counts.get(key, 0) + 1
    likeliest = expected.topk(5).values
    for probability in likeliest.tolist():
        seen = sum(count for key, count in counts.items() if abs(key - math.log(probability)) < 2e-4) / draws
        assert seen == pytest.approx(probability, abs=4 * math.sqrt(probability * (1 - probability) / draws) + 1e-3)


def test_a_token_that_is_next_to_impossible_is_not_drawn() -> None:
    """However many of them there are: one that took no time at all would win whatever its probability."""
    vocabulary, seeds = 200_000, [101, 108, 116, 130]  # in fp32 their first 200,000 times hold a 0
    logprobs = torch.full((len(seeds), vocabulary), -60.0)
    logprobs[:, 7] = 0.0
    samples, temperatures = torch.arange(len(seeds)), torch.ones(len(seeds))
    times = _Times(seeds, vocabulary, torch.device("cpu")).next(samples, temperatures)
    chosen, close = _first(logprobs, temperatures, times)
    assert set(chosen.tolist()) == {7}
    assert not close.any()


def test_logprobs_are_untempered_and_end_with_the_end_of_turn(prompts: list[Prompt], chat: Chat) -> None:
    model = load_model(BASE, SETTINGS)
    generator = HuggingFaceGenerator(model, chat, 1024)
    ((_, (response,)),) = generator.generate([Request(prompts[2], (5,), temperature=0.0)], max_new_tokens=12)
    assert response.finished
    prompt, reply = chat.prompt_ids(prompts[2]), chat.reply_ids(response.text)
    assert len(response.logprobs) == len(reply)
    with torch.inference_mode():
        logprobs = model(input_ids=torch.tensor([prompt + reply])).logits[0].log_softmax(dim=-1)
    wanted = [float(logprobs[len(prompt) + at - 1, token]) for at, token in enumerate(reply)]
    assert response.logprobs == pytest.approx(wanted, abs=1e-4)


def test_each_log_probability_has_its_token_s_text(prompts: list[Prompt], chat: Chat) -> None:
    generator = HuggingFaceGenerator(load_model(BASE, SETTINGS), chat, 1024)
    requests = [Request(prompt, (5, 6)) for prompt in prompts[:8]]
    for _, responses in generator.generate(requests, max_new_tokens=12):
        for response in responses:
            assert len(response.tokens) == len(response.logprobs)
            written = response.tokens[:-1] if response.finished else response.tokens
            assert "".join(written).split() == response.text.split()
            if response.finished:
                assert response.tokens[-1] in {chat.end_of_turn, chat.tokenizer.eos_token}


@pytest.mark.parametrize(
    "options",
    [
        ("billing", "delivery", "hardware"),
        ("billing", "billing desk", "billing desk two"),
        ("a network", "a printer", "the network cable"),
    ],
    ids=["one token", "prefixes of each other", "several tokens"],
)
def test_scores_are_the_exact_distribution_over_the_options(
    prompts: list[Prompt], chat: Chat, options: tuple[str, ...]
) -> None:
    """Against one full forward pass an option: a proper prefix is told apart by its end-of-turn."""
    model = load_model(BASE, SETTINGS)
    generator = HuggingFaceGenerator(model, chat, 1024)
    scored = dict(generator.score(prompts[:9], [options] * 9))
    for index, prompt in enumerate(prompts[:9]):
        start = chat.prompt_ids(prompt)
        totals = []
        endings = chat.distinguishing(options)
        for ending in endings:
            with torch.inference_mode():
                logprobs = model(input_ids=torch.tensor([start + ending])).logits[0].log_softmax(dim=-1)
            totals.append(sum(float(logprobs[len(start) + at - 1, token]) for at, token in enumerate(ending)))
        wanted = torch.tensor(totals, dtype=torch.float64).log_softmax(dim=0).tolist()
        assert scored[index] == pytest.approx(wanted, abs=1e-4)
        assert math.fsum(map(math.exp, scored[index])) == pytest.approx(1)


def test_rows_may_have_different_options(prompts: list[Prompt], chat: Chat) -> None:
    generator = HuggingFaceGenerator(load_model(BASE, SETTINGS), chat, 1024)
    options = [("A", "B"), ("A", "B", "C"), ("billing", "the building")]
    together = dict(generator.score(prompts[:3], options))
    for index in range(3):
        ((_, alone),) = generator.score([prompts[index]], [options[index]])
        assert together[index] == pytest.approx(alone, abs=1e-4)


def test_the_saved_adapter_answers_as_before_when_peft_loads_it(
    prompts: list[Prompt], chat: Chat, adapter: Path
) -> None:
    with open_generator(BASE, SETTINGS, chat, adapter) as generator:
        requests = [Request(prompt, (0,), temperature=0.0) for prompt in prompts]
        merged = [r[0].text for _, r in sorted(generator.generate(requests, max_new_tokens=12))]
    loaded = PeftModel.from_pretrained(load_model(BASE, SETTINGS), str(adapter))
    saved_chat = Chat.load(str(adapter), None)
    for prompt, wanted in zip(prompts, merged, strict=True):
        ids = torch.tensor([saved_chat.prompt_ids(prompt)])
        output = loaded.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        assert saved_chat.decode(output[0, ids.shape[1] :].tolist()) == wanted


def test_training_twice_gives_the_same_bytes(labeled: list[Example], chat: Chat, adapter: Path, tmp_path: Path) -> None:
    LoraTrainer(BASE, SETTINGS, chat).train(training_rows(labeled), QUICK, seed=1, output=tmp_path)
    name = "adapter_model.safetensors"
    assert (tmp_path / name).read_bytes() == (adapter / name).read_bytes()


def test_continuing_trains_the_same_adapter(labeled: list[Example], chat: Chat, adapter: Path, tmp_path: Path) -> None:
    settings = EvolutionSettings(learning_rate=1e-3, steps=4, batch_size=16, start="continue")
    trainer = LoraTrainer(BASE, SETTINGS, chat)
    trainer.train(training_rows(labeled), settings, seed=2, output=tmp_path, start_from=adapter)
    one, two = (PeftModel.from_pretrained(load_model(BASE, SETTINGS), str(f)) for f in (adapter, tmp_path))
    before, after = one.state_dict(), two.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_micro_batches_leave_the_training_as_it_is(labeled: list[Example], chat: Chat, tmp_path: Path) -> None:
    trainer = LoraTrainer(BASE, SETTINGS, chat)
    losses = []
    for micro in (16, 4):
        settings = QUICK.model_copy(
            update={"micro_batch_size": micro, "lora": QUICK.lora.model_copy(update={"dropout": 0.0})}
        )
        log = trainer.train(training_rows(labeled), settings, seed=3, output=tmp_path / str(micro))
        losses.append([loss for _, loss in log.losses])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_row_of_weight_zero_teaches_nothing(labeled: list[Example], chat: Chat, tmp_path: Path) -> None:
    """Poisoned rows without weight leave the loss where the good rows alone put it."""
    good = training_rows(labeled[:16])
    bad = [TrainingRow((*row.prompt, Message("assistant", "building")), 0.0) for row in labeled[16:32]]
    settings = TrainingSettings(learning_rate=1e-9, steps=1, batch_size=32)
    trainer = LoraTrainer(BASE, SETTINGS, chat)
    with_bad = trainer.train(good + bad, settings, seed=4, output=tmp_path / "a")
    settings = settings.model_copy(update={"batch_size": 16})
    without = trainer.train(good, settings, seed=4, output=tmp_path / "b")
    assert with_bad.losses[0][1] == pytest.approx(without.losses[0][1], rel=1e-3)


def test_a_loss_that_is_not_finite_ends_training_and_writes_no_adapter(
    labeled: list[Example], chat: Chat, tmp_path: Path
) -> None:
    settings = TrainingSettings(learning_rate=1e18, steps=40, batch_size=16, max_grad_norm=1e18, warmup_ratio=0.0)
    with pytest.raises(LossDiverged, match="learning_rate"):
        LoraTrainer(BASE, SETTINGS, chat).train(training_rows(labeled), settings, seed=5, output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_long_rows_keep_their_reply(chat: Chat, labeled: list[Example], tmp_path: Path) -> None:
    long = TrainingRow((Message("user", "printer " * 400), Message("assistant", "hardware")))
    settings = ModelSettings(device="cpu", max_length=64)
    log = LoraTrainer(BASE, settings, chat).train([long], QUICK, seed=6, output=tmp_path)
    assert (log.truncated_rows, log.tokens) == (1, 64)


def test_what_fits_is_decided_by_tokens(chat: Chat) -> None:
    generator = HuggingFaceGenerator(load_model(BASE, SETTINGS), chat, 128)
    assert generator.fits((Message("user", "printer " * 100),), 8)
    assert not generator.fits((Message("user", "printer " * 130),), 8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_trained_model_is_gone_before_the_next_is_loaded(labeled: list[Example], chat: Chat, tmp_path: Path) -> None:
    gc.disable()
    try:
        before = models()
        trainer = LoraTrainer(BASE, SETTINGS, chat, FakeCheckpoints(tmp_path / "checkpoint", every=5))
        trainer.train(training_rows(labeled), QUICK, seed=1, output=tmp_path / "adapter")
        loaded = load_model(BASE, SETTINGS)
        assert models() - before == {id(loaded)}
    finally:
        gc.enable()


def models() -> set[int]:
    """Those in memory, whoever holds them."""
    return {id(one) for one in gc.get_objects() if type(one) is LlamaForCausalLM}

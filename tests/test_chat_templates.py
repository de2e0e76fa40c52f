"""The loss mask under each family of chat templates: exactly the reply and its end of turn, nothing after it.

The templates say what the families' own say, in fewer words; the tokenizers split text as the families' do.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from semievol.backends.chat import Chat, Encoded
from semievol.errors import ModelError
from semievol.prompts import PLAIN_TEMPLATE, Message

CORPUS = [
    "The invoice was charged twice, please refund the payment.",
    "I cannot log in with my password; the account is locked.",
    "Which of the following is right? A. yes B. no C. perhaps",
    "user assistant system model positive negative neutral Answer: 42",
]
LLAMA_3 = (
    "{{ bos_token }}"
    "{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}"
    "{% set ns = namespace(system='') %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}"
    "{% elif m['role'] == 'user' %}[INST] {{ ns.system }}{{ m['content'] }} [/INST]{% set ns.system = '' %}"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """What a test has to know of a family: how it splits text, its special tokens, and what ends a turn."""

    template: str | None
    split: str
    special: tuple[str, ...]
    end: str
    eos: str
    bos: str | None = None
    lead: str = ""  # what stands between prompt and reply


FAMILIES = {
    "llama-3": Family(
        LLAMA_3,
        "llama",
        ("<|start_header_id|>", "<|end_header_id|>"),
        end="<|eot_id|>",
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
    ),
    "qwen": Family(QWEN, "llama", ("<|im_start|>",), end="<|im_end|>", eos="<|endoftext|>"),
    "chatml": Family(CHATML, "gpt", ("<|im_start|>",), end="<|im_end|>", eos="<|im_end|>"),
    "gemma": Family(GEMMA, "whole", ("<start_of_turn>",), end="<end_of_turn>", eos="<eos>", bos="<bos>"),
    "mistral": Family(MISTRAL, "metaspace", ("[INST]", "[/INST]"), end="</s>", eos="</s>", bos="<s>", lead=" "),
    "none": Family(None, "gpt", (), end="<|endoftext|>", eos="<|endoftext|>", lead=" "),
    "none, with bos": Family(None, "metaspace", (), end="</s>", eos="</s>", bos="<s>", lead=" "),
}


def trained_tokenizer(split: str) -> Tokenizer:
    """A small BPE tokenizer that cuts text into words as the family's does."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=split in {"metaspace", "whole"}, unk_token=None))
    initial = pre_tokenizers.ByteLevel.alphabet()
    if split == "gpt":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif split == "llama":
        words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
    else:
        if split == "whole":
            tokenizer.normalizer = normalizers.Replace(" ", "▁")
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        initial = [f"<0x{byte:02X}>" for byte in range(256)]  # what is not in the vocabulary is spelt in bytes
    pairs = ["\n\n", "\n\n\n", "  ", "...", "?!", ":\n"]  # merges that real vocabularies have and this corpus has not
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=initial if split in {"gpt", "llama"} else [],
        special_tokens=initial if split not in {"gpt", "llama"} else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator((CORPUS + pairs) * 3, trainer)
    return Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"added_tokens": []}))


@cache
def chat_of(name: str) -> Chat:
    """One family's chat; never changed by a test."""
    return Chat(tokenizer_of(FAMILIES[name]))


def fast(tokenizer: Tokenizer, **tokens: str | None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def tokenizer_of(family: Family, template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = fast(trained_tokenizer(family.split), eos_token=family.eos, bos_token=family.bos)
    special = [token for token in (*family.special, family.end) if token != family.eos]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True)
    tokenizer.chat_template = template or family.template
    return tokenizer


def learned(chat: Chat, encoded: Encoded) -> list[str]:
    """The text of each run of tokens in the loss."""
    runs = groupby(zip(encoded.input_ids, encoded.labels, strict=True), key=lambda pair: pair[1] != -100)
    return [str(chat.tokenizer.decode([token for token, _ in run])) for inside, run in runs if inside]


def turns(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    """User and assistant in turn."""
    roles: Sequence[tuple[Message, ...]] = [
        (Message("user" if index % 2 == 0 else "assistant", content),) for index, content in enumerate(contents)
    ]
    return ((Message("system", system),) if system else ()) + tuple(turn for one in roles for turn in one)


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def chat(name: str) -> Chat:
    return chat_of(name)


@pytest.fixture
def family(name: str) -> Family:
    return FAMILIES[name]


REPLIES = ["positive", "A", "-5", "it was charged twice.\n\nSo: refund.", "é 😀 中文", "...", "?!", "1,234 %", "a  b"]


@pytest.mark.parametrize("reply", REPLIES)
def test_the_loss_sees_the_reply_and_its_end_of_turn_and_nothing_else(chat: Chat, family: Family, reply: str) -> None:
    encoded = chat.encode(turns("please refund", reply))
    assert learned(chat, encoded) == [f"{family.lead}{reply}{family.end}"]
    assert encoded.labels[-1] == encoded.input_ids[-1] == chat.tokenizer.convert_tokens_to_ids(family.end)
    assert len(encoded.input_ids) == len(encoded.labels)
    assert all(label in {token, -100} for token, label in zip(encoded.input_ids, encoded.labels, strict=True))


@pytest.mark.parametrize("reply", REPLIES)
def test_pieces_are_the_tokens_as_text(chat: Chat, family: Family, reply: str) -> None:
    messages = turns("please refund", "yes", "é 😀?", reply, system="Be brief.")
    pieces, encoded = chat.pieces(messages), chat.encode(messages)
    assert [seen for _, seen in pieces] == [label != -100 for label in encoded.labels]
    text = "".join(text for text, _ in pieces)
    assert text.endswith(f"{family.lead}{reply}{family.end}")
    assert chat.tokenizer(text, add_special_tokens=False)["input_ids"] == encoded.input_ids
    seen = ["".join(text for text, _ in run) for inside, run in groupby(pieces, key=lambda piece: piece[1]) if inside]
    assert seen == [f"{family.lead}{told}{family.end}" for told in ("yes", reply)]


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_training_begins_as_generation_does(chat: Chat, reply: str, system: str | None) -> None:
    messages = turns("refund?", "yes", "and the invoice?", reply, system=system)
    prompt, encoded = chat.prompt_ids(messages[:-1]), chat.encode(messages)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[len(prompt) :] == encoded.input_ids[len(prompt) :]


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).filter(str.strip),
    st.text(st.sampled_from(" \n\t.:a5-▁é😀"), min_size=1, max_size=8).filter(str.strip),
)
@pytest.mark.parametrize("which", FAMILIES)
def test_any_reply_follows_its_prompt_token_for_token(which: str, question: str, reply: str) -> None:
    chat, messages = chat_of(which), turns(question, reply)
    prompt, encoded = chat.prompt_ids(messages[:-1]), chat.encode(messages)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels == [-100] * len(prompt) + encoded.input_ids[len(prompt) :]
    assert encoded.input_ids[-1] == chat.tokenizer.convert_tokens_to_ids(chat.end_of_turn)


def test_every_assistant_turn_is_learned(chat: Chat, family: Family) -> None:
    encoded = chat.encode(turns("one?", "yes", "two?", "no", "three?", "perhaps"))
    assert learned(chat, encoded) == [f"{family.lead}{reply}{family.end}" for reply in ("yes", "no", "perhaps")]


@pytest.mark.parametrize(("weights", "expected"), [((0, 1), ["no"]), ((1, 0), ["yes"]), ((1, 1), ["yes", "no"])])
def test_turns_of_weight_0_are_not_learned(
    chat: Chat, family: Family, weights: tuple[int, int], expected: list[str]
) -> None:
    messages = (
        Message("user", "one?"),
        Message("assistant", "yes", weights[0]),
        Message("user", "two?"),
        Message("assistant", "no", weights[1]),
    )
    assert learned(chat, chat.encode(messages)) == [f"{family.lead}{reply}{family.end}" for reply in expected]


def test_worked_examples_before_the_question_do_not_change_the_reply_s_tokens(chat: Chat) -> None:
    assert chat.encode(turns("a?", "yes", "q", "no")).labels[-3:] == chat.encode(turns("q", "no")).labels[-3:]


def test_the_system_message_reaches_the_model(chat: Chat) -> None:
    text = str(chat.tokenizer.decode(chat.prompt_ids(turns("refund?", system="Be brief."))))
    assert text.count("Be brief.") == 1
    assert text.index("Be brief.") < text.index("refund?")


def test_a_template_that_refuses_system_messages_gets_them_before_the_first_question() -> None:
    chat = chat_of("gemma")
    assert not chat.has_system
    merged = turns("Be brief.\n\nrefund?", "yes", "why?", "so")
    assert chat.encode(turns("refund?", "yes", "why?", "so", system="Be brief.")) == chat.encode(merged)


def test_a_template_that_silently_drops_system_messages_is_helped_as_well() -> None:
    dropping = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    chat = Chat(tokenizer_of(FAMILIES["chatml"], dropping))
    assert "Be brief." in chat.tokenizer.decode(chat.prompt_ids(turns("refund?", system="Be brief.")))


def test_the_end_of_turn_is_the_template_s_own_and_both_it_and_eos_stop_generation(chat: Chat, family: Family) -> None:
    assert chat.end_of_turn == family.end
    assert chat.stop_ids == {chat.tokenizer.convert_tokens_to_ids(token) for token in (family.end, family.eos)}


def test_a_reply_s_ids_are_those_that_training_sees(chat: Chat) -> None:
    encoded = chat.encode(turns("any question", "positive"))
    assert chat.reply_ids("positive") == [label for label in encoded.labels if label != -100]


@pytest.mark.parametrize("around", ["{}", "see {}", "{} is a token", "a {} b", "{}{}"])
def test_a_reply_with_special_looking_text_is_learned_to_its_real_end(chat: Chat, family: Family, around: str) -> None:
    reply = around.format(family.end, family.end)
    messages = turns("q", reply)
    prompt, encoded = chat.prompt_ids(messages[:-1]), chat.encode(messages)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels == [-100] * len(prompt) + encoded.input_ids[len(prompt) :]
    text = str(chat.tokenizer.decode(encoded.labels[len(prompt) :]))
    assert text.endswith(family.end)
    assert text.count(family.end) == reply.count(family.end) + 1


def test_a_question_with_special_looking_text_is_not_learned(chat: Chat, family: Family) -> None:
    encoded = chat.encode(turns(f"what is {family.end} for?", "positive"))
    assert learned(chat, encoded) == [f"{family.lead}positive{family.end}"]


def test_prompts_are_the_same_one_by_one_and_together(chat: Chat) -> None:
    prompts = [turns("one?"), turns("two?", "yes", "three?"), turns("four?", system="Be brief.")]
    assert chat.prompts_ids(prompts) == [chat.prompt_ids(prompt) for prompt in prompts]
    assert chat.prompts_ids([]) == []


def test_decoding_gives_the_reply_back(chat: Chat) -> None:
    for reply in ("positive", "It was refunded.", "é 😀"):
        assert chat.decode(chat.reply_ids(reply)) == reply


def test_token_texts_join_to_the_text(chat: Chat, family: Family) -> None:
    """Characters that the vocabulary spells in bytes are U+FFFD, once a byte; the end of a turn goes by its name."""
    text = "The invoice  was charged, Zürich 日本 😀 twice."
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = chat.token_texts(ids)
    assert len(texts) == len(ids)
    spelt = "".join(letter if letter.isascii() else "\ufffd" * len(letter.encode()) for letter in text)
    assert "".join(texts) == spelt
    assert chat.token_texts([*ids[::-1], *chat.reply_ids("x")[-1:]]) == (*texts[::-1], family.end)


def test_a_saved_chat_renders_the_same(tmp_path: Path, chat: Chat) -> None:
    chat.save(tmp_path)
    again = Chat.load(str(tmp_path), None)
    messages = turns("refund?", "yes", system="Be brief.")
    assert again.encode(messages) == chat.encode(messages)
    assert again.end_of_turn == chat.end_of_turn


def test_a_model_without_a_template_gets_the_plain_one() -> None:
    chat = chat_of("none")
    assert chat.tokenizer.chat_template == PLAIN_TEMPLATE
    text = chat.tokenizer.decode(chat.prompt_ids(turns("one?", "yes", "two?", system="Be brief.")))
    assert text == "Be brief.\n\none?\nAnswer: yes<|endoftext|>\n\ntwo?\nAnswer:"


def test_a_template_that_prints_the_date_gives_the_same_prompt_on_every_day() -> None:
    dated = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML
    chat = Chat(tokenizer_of(FAMILIES["chatml"], dated))
    assert "Today is 26 Jul 2024." in chat.tokenizer.decode(chat.prompt_ids(turns("refund?")))


REWRITING = CHATML.replace(
    "{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] != 'user' else m['content'][:3] }}"
)
NO_END = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
SHOUTING = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}")
NO_REPLIES = CHATML.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('no replies here') }}{% endif %}",
)


def test_a_template_that_rewrites_earlier_turns_is_a_model_error() -> None:
    chat = Chat(tokenizer_of(FAMILIES["chatml"], REWRITING))
    with pytest.raises(ModelError, match="changes earlier turns"):
        chat.encode(turns("a long question", "yes"))


@pytest.mark.parametrize("template", [NO_END, SHOUTING, NO_REPLIES], ids=["no end", "shouting", "no replies"])
def test_a_template_that_cannot_be_trained_on_is_a_model_error(template: str) -> None:
    with pytest.raises(ModelError):
        Chat(tokenizer_of(FAMILIES["chatml"], template))


def test_messages_that_the_template_refuses_are_a_model_error() -> None:
    with pytest.raises(ModelError, match="alternate"):
        chat_of("gemma").encode((Message("user", "a"), Message("user", "b"), Message("assistant", "c")))


def test_a_tokenizer_without_an_end_of_sequence_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="end-of-sequence"):
        Chat(fast(trained_tokenizer("gpt")))


def test_a_folder_without_a_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        Chat.load(str(tmp_path), None)

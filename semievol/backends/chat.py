"""Messages to tokens, and which tokens the loss sees. The one place where chat templates are rendered.

Training and generation render with the same template, so a trained reply begins exactly where generation begins. A
base model without a template gets `PLAIN_TEMPLATE`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer, BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase

from semievol.errors import ModelError
from semievol.prompts import PLAIN_TEMPLATE, Message

_PROBE = "semievol-probe"
_DATE = date(2024, 7, 26)
"""What templates that print today's date are told, so that a prompt is no matter of the clock (Llama's own default)."""


def config_of(model: str, revision: str | None) -> PreTrainedConfig:
    """A model's configuration. Raises ModelError if there is none to load."""
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"no configuration can be loaded from {model}: {error}") from error
    assert isinstance(config, PreTrainedConfig)
    return config


def position_limit(model: str, revision: str | None) -> int | None:
    """The longest chat that a model can take, in tokens, from its configuration alone; None where it names none.

    Raises ModelError if there is no configuration to load.
    """
    return getattr(config_of(model, revision), "max_position_embeddings", None)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A training chat. `labels` equals `input_ids` where the loss looks and -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


class Chat:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ModelError("the model needs a fast tokenizer (tokenizer.json): the loss mask uses its offsets")
        if tokenizer.eos_token is None:
            raise ModelError("the model's tokenizer names no end-of-sequence token")
        if tokenizer.chat_template is None:
            tokenizer.chat_template = PLAIN_TEMPLATE
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer = tokenizer
        self._special = {
            place: token.content for place, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._texts: dict[int, str] = {}
        self._options: dict[str, list[int]] = {}
        self.has_system = self._renders_system()
        self.end_of_turn = self._end_of_turn()
        self.stop_ids = frozenset(
            i for i in (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(self.end_of_turn)) if isinstance(i, int)
        )

    @classmethod
    def load(cls, model: str, revision: str | None) -> "Chat":
        """The tokenizer of a hub model or folder. Raises ModelError if there is none to load."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"no tokenizer can be loaded from {model}: {error}") from error
        return cls(tokenizer)

    def prompt_ids(self, prompt: Sequence[Message]) -> list[int]:
        """Token ids of a prompt, up to where the assistant's reply begins."""
        return self.prompts_ids([prompt])[0]

    def prompts_ids(self, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
        """The same for many prompts at once, which is several times faster."""
        texts = [self._render(prompt, generation=True) for prompt in prompts]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return ids

    def lengths(self, chats: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of each chat: up to the end of its last reply, or to where the reply begins that it asks for."""
        asking = [chat for chat in chats if chat[-1].role != "assistant"]
        prompts = iter(self.prompts_ids(asking))
        return [len(self.encode(chat).input_ids if chat[-1].role == "assistant" else next(prompts)) for chat in chats]

    def reply_ids(self, reply: str) -> list[int]:
        """Token ids of an assistant's reply, end-of-turn included."""
        encoded = self.encode((Message("user", "x"), Message("assistant", reply)))
        return [label for label in encoded.labels if label != -100]

    def fits(self, prompt: Sequence[Message], room: int) -> bool:
        """Whether a prompt has at most `room` tokens. A short enough text is not tokenised to know it."""
        # A token covers at least one byte; a turn's frame in known templates is below 32 tokens.
        if sum(len(message.content.encode()) + 32 for message in prompt) <= room:
            return True
        return len(self.prompt_ids(prompt)) <= room

    def distinguishing(self, options: Sequence[str]) -> list[list[int]]:
        """Each option's tokens as a reply, up to where no other begins the same (its end-of-turn if need be).

        Raises ModelError if two options are the same tokens.
        """
        replies = [self._option_ids(option) for option in options]
        if len({tuple(reply) for reply in replies}) < len(replies):
            raise ModelError("two of the task's options are the same tokens to this model; rename one of them")
        cut = []
        for reply in replies:
            length = 1
            while sum(other[:length] == reply[:length] for other in replies) > 1:
                length += 1
            cut.append(reply[:length])
        return cut

    def _option_ids(self, option: str) -> list[int]:
        if option not in self._options:
            self._options[option] = self.reply_ids(option)
        return self._options[option]

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """A training chat: loss on assistant turns of weight 1, from the reply's first token to its end-of-turn.

        Raises ModelError if the template does not keep replies as they are (then no mask would be right).
        """
        _, encoding, labels = self._masked(messages)
        return Encoded(encoding["input_ids"], labels)

    def pieces(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The same to look at: each token's text, and whether the loss sees it. Joined, the texts are the chat."""
        text, encoding, labels = self._masked(messages)
        ends = [right for _, right in encoding["offset_mapping"]]
        return [
            (text[start:end], label != -100) for start, end, label in zip([0, *ends[:-1]], ends, labels, strict=True)
        ]

    def _masked(self, messages: Sequence[Message]) -> tuple[str, BatchEncoding, list[int]]:
        """The rendered chat up to its last end-of-turn, its tokens, and their labels."""
        text = self._render(messages, generation=False)
        spans = [
            self._reply_span(text, messages, index)
            for index, message in enumerate(messages)
            if message.role == "assistant" and message.weight
        ]
        # Everything after the last end-of-turn (a new line in ChatML) is never generated, so it is not trained on.
        text = text[: max(end for _, end in spans)]
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoding["input_ids"]
        labels = [
            token if any(start < right and left < end for start, end in spans) else -100
            for token, (left, right) in zip(ids, encoding["offset_mapping"], strict=True)
        ]
        return text, encoding, labels

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids without special tokens and outer white space."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Text of each token as it stands within a reply, special tokens by name, parts of a character as U+FFFD."""
        missing = {token for token in ids if token not in self._texts}
        self._texts.update({token: self._text_of(token) for token in missing})
        return tuple([self._texts[token] for token in ids])

    def _text_of(self, token: int) -> str:
        """A decoder may strip the space in front of its first token, so the text is what a second one adds."""
        if token in self._special:
            return self._special[token]
        once, twice = (
            str(self.tokenizer.decode([token] * times, clean_up_tokenization_spaces=False)) for times in (1, 2)
        )
        return twice.removeprefix(once) if twice.startswith(once) else once

    def save(self, folder: Path) -> None:
        """Save tokenizer and template beside an adapter."""
        self.tokenizer.save_pretrained(str(folder))

    def _reply_span(self, text: str, messages: Sequence[Message], index: int) -> tuple[int, int]:
        """Characters [start, end) of one assistant reply in the rendered chat, end-of-turn included."""
        prefix = self._render(messages[:index], generation=True)
        if not text.startswith(prefix):
            raise ModelError(
                "the model's chat template changes earlier turns when a reply is added, so prompts in training and "
                "in use would differ; give the tokenizer a template that only appends"
            )
        start = len(prefix)
        found = text.find(self.end_of_turn, start + len(messages[index].content.strip()))
        if found < 0:
            raise ModelError(f"the model's chat template ends a reply without {self.end_of_turn!r}")
        return start, found + len(self.end_of_turn)

    def _render(self, messages: Sequence[Message], *, generation: bool) -> str:
        # White space around a reply would merge with the prompt's last token, so that training and use would differ.
        turns: list[dict[str, str]] = [
            {"role": m.role, "content": m.content.strip() if m.role == "assistant" else m.content} for m in messages
        ]
        if turns and turns[0]["role"] == "system" and not self.has_system:
            system, user, *rest = turns
            turns = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=generation, strftime_now=_DATE.strftime
                )
            )
        except TemplateError as error:
            raise ModelError(f"the model's chat template refuses the messages: {error}") from error

    def _renders_system(self) -> bool:
        """Some templates (Gemma) refuse or drop a system turn; it then goes in front of the first user turn."""
        turns: list[dict[str, Any]] = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "x"}]
        try:
            return _PROBE in str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        except TemplateError:
            return False

    def _end_of_turn(self) -> str:
        """The special token that the template writes after a reply (EOS where it writes none of its own)."""
        text = self._render((Message("user", "x"), Message("assistant", _PROBE)), generation=False)
        if _PROBE not in text:
            raise ModelError("the model's chat template does not keep a reply as it is, so none could be trained on")
        tail = text[text.rindex(_PROBE) + len(_PROBE) :]
        special = [token for token in self.tokenizer.all_special_tokens if token in tail]
        special += [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special and t.content in tail]
        if not special:
            raise ModelError("the model's chat template writes no special token after a reply: it would never stop")
        return min(special, key=tail.index)

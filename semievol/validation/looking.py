"""Looks at checked rows as the model would see them: lengths, loss mask, worked examples, and what a run adds up to.

Needs the model's tokenizer and configuration, never its weights, and downloads no retrieval model.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from semievol.answers import Answers
from semievol.backends.chat import Chat, position_limit
from semievol.backends.embedders import build_retriever, is_at_hand
from semievol.backends.huggingface import device_name
from semievol.backends.quantization import check_quantization
from semievol.estimates.history import History
from semievol.examples import Example
from semievol.overlaps import LINES_TOLD
from semievol.prompts import Message, Prompt, question_of
from semievol.recipe import Recipe
from semievol.replies import reply_limit, reply_room
from semievol.validation.checking import SAMPLE_ROWS, Checked
from semievol.validation.lengths import lengths_of


def look(model: str, recipe: Recipe, checked: Checked) -> dict[str, Any]:
    """Everything that the model's tokenizer says about checked files.

    Raises ModelError if it cannot be loaded, or what the recipe needs is not installed.
    """
    assert checked.rules is not None, "files are checked first"
    check_quantization(recipe.model)
    chat = Chat.load(model, recipe.model.revision)
    limit = position_limit(model, recipe.model.revision) or recipe.model.max_length
    rows = _Rows(chat, recipe, min(limit, recipe.model.max_length), checked, checked.rules)
    return {
        "limit": rows.limit,
        "lengths": {role: asdict(lengths_of(counts)) for role, counts in rows.lengths.items() if counts},
        "too_long": rows.too_long(),
        "loss_mask": rows.loss_mask(),
        "worked_examples": worked_examples(model, recipe, chat, checked),
        "estimate": estimate(model, recipe, chat, checked) if checked.train else None,
    }


def estimate(model: str, recipe: Recipe, chat: Chat, checked: Checked) -> dict[str, Any]:
    """What a run would take, as a run itself expects it."""
    assert checked.rules is not None, "files are checked first"
    history = History.of(model, recipe.model, device_name(recipe.model))
    samples = {
        "labeled": checked.train,
        "unlabeled": checked.pool,
        "validation": checked.validation,
        "test": checked.test,
    }
    rows = {role: checked.used.get(role, 0) for role in samples}
    return history.estimator(chat.lengths).estimate(recipe, checked.rules, rows, samples)


class _Rows:
    """The rows in tokens; labeled ones with their reply. Of large files the first `SAMPLE_ROWS` stand for all."""

    def __init__(self, chat: Chat, recipe: Recipe, limit: int, checked: Checked, rules: Answers) -> None:
        self.chat, self.recipe, self.limit, self.checked, self.rules = chat, recipe, limit, checked, rules
        self.train = checked.train[:SAMPLE_ROWS]
        encoded = [chat.encode(_chat_of(row)) for row in self.train]
        self.asked = {"unlabeled": checked.pool, "validation": checked.validation, "test": checked.test}
        self.asked = {role: rows[:SAMPLE_ROWS] for role, rows in self.asked.items()}
        prompts = {role: [row.prompt for row in rows] for role, rows in self.asked.items()}
        self.lengths = {"labeled": [len(one.input_ids) for one in encoded]}
        self.lengths |= {role: self._measure(asked) for role, asked in prompts.items()}

    def _measure(self, prompts: Sequence[Prompt]) -> list[int]:
        return [len(ids) for ids in self.chat.prompts_ids(prompts)]

    def too_long(self) -> list[dict[str, Any]]:
        """Rows that do not fit, by file, and what becomes of them."""
        most = self.recipe.model.max_length
        found = [_too_long("labeled", "cut", self.train, self.lengths["labeled"], lambda _: most)]
        for role, rows in self.asked.items():
            fate = "rejected" if role == "unlabeled" else "wrong"
            found.append(_too_long(role, fate, rows, self.lengths[role], self._room_of(role)))
        return [one for one in found if one["rows"]]

    def _room_of(self, role: str) -> Callable[[Example], int]:
        """The longest prompt that a row of the file may have."""
        if role == "unlabeled":
            return lambda row: self.limit - reply_room(row, self.rules, self.recipe.generation)
        most = self.limit - reply_limit(self.rules, self.asked[role], self.recipe.evaluation.max_new_tokens)
        return lambda _: most

    def loss_mask(self) -> dict[str, Any] | None:
        """The first row that is trained on, token by token, and whether the loss sees the token."""
        if not self.train:
            return None
        pieces = self.chat.pieces(_chat_of(self.train[0]))
        return {"line": self.train[0].line, "tokens": [list(piece) for piece in pieces]}


def worked_examples(model: str, recipe: Recipe, chat: Chat, checked: Checked) -> dict[str, Any]:
    """What the first unlabeled row would be shown, the most alike first; `missing` says why there is nothing."""
    name = recipe.propagation.retriever
    train = checked.train[:SAMPLE_ROWS]
    if not recipe.propagation.in_context:
        return {"missing": "propagation.in_context is off"}
    if not checked.pool or not train:
        return {"missing": "there is no row to look for"}
    if not is_at_hand(name):
        needs = "the base model's weights" if name == "hidden" else "a download"
        return {"missing": f"the retrieval model {name} needs {needs}, which a run would load"}
    row = checked.pool[0]
    retriever = build_retriever(name, [question_of(one.prompt) for one in train], model, recipe.model, chat, 1)
    indices, similarities = retriever.nearest([question_of(row.prompt)], recipe.propagation.k)
    found = [
        {
            "line": train[index].line,
            "question": question_of(train[index].prompt),
            "reply": train[index].labeled_reply,
            "similarity": round(float(similarity), 4),
        }
        for index, similarity in zip(indices[0], similarities[0], strict=True)
    ]
    return {"line": row.line, "question": question_of(row.prompt), "retriever": name, "found": found}


def _chat_of(row: Example) -> Prompt:
    return (*row.prompt, Message("assistant", row.labeled_reply))


def _too_long(
    role: str, fate: str, rows: Sequence[Example], lengths: Sequence[int], most: Callable[[Example], int]
) -> dict[str, Any]:
    lines = [row.line for row, length in zip(rows, lengths, strict=True) if length > most(row)]
    return {"role": role, "fate": fate, "rows": len(lines), "lines": lines[:LINES_TOLD]}

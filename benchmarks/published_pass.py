"""One pass of the published pipeline over the rows: a process that starts an engine and writes a reply to each prompt.

The adapter stays beside the weights. What is asked is one JSON file, what is answered another; both are arguments.
"""

import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt
from vllm.lora.request import LoRARequest

from semievol.backends.chat import Chat
from semievol.prompts import Message


def answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """A reply to each prompt: its tokens, their log-probabilities in nats, and whether it came to an end."""
    engine, adapter = LLM(**asked["engine"]), asked["adapter"]
    chat = Chat.load(asked["engine"]["model"], asked["engine"]["revision"])
    prompts = chat.prompts_ids([[Message(*message) for message in prompt] for prompt in asked["prompts"]])
    parameters = [
        SamplingParams(
            max_tokens=asked["max_new_tokens"],
            temperature=temperature,
            seed=seed if temperature else None,
            logprobs=0,
            detokenize=False,
            stop_token_ids=sorted(chat.stop_ids),
            ignore_eos=True,
        )
        for seed, temperature in zip(asked["seeds"], asked["temperatures"], strict=True)
    ]
    written = engine.generate(
        [TokensPrompt(prompt_token_ids=ids) for ids in prompts],
        parameters,
        lora_request=LoRARequest("warm-up", 1, adapter) if adapter else None,
        use_tqdm=False,
    )
    return [_reply(request.outputs[0]) for request in written]


def _reply(output: Any) -> dict[str, Any]:
    tokens = list(output.token_ids)
    logprobs = [at[token].logprob for token, at in zip(tokens, output.logprobs, strict=True)]
    return {"tokens": tokens, "logprobs": logprobs, "finished": output.finish_reason == "stop"}


if __name__ == "__main__":
    told = answer(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(told), encoding="utf-8")

"""Run by a Python with vLLM: ``vllm_says.py MODEL``, a question in stdin, the answer in stdout.

Both are JSON. Question: ``prompts`` [ids], ``text``, ``messages``. Answer: 64 greedy ids after each
prompt, and the ids that vLLM makes of the text and of the messages.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def answer(llm: Any, question: dict[str, Any], settings: Any) -> dict[str, Any]:
    greedy = settings(temperature=0, max_tokens=64, ignore_eos=True)
    one = settings(temperature=0, max_tokens=1)
    asked = [{"prompt_token_ids": ids} for ids in question["prompts"]]
    said = llm.generate(asked, greedy, use_tqdm=False)
    (text,) = llm.generate([question["text"]], one, use_tqdm=False)
    (chat,) = llm.chat(question["messages"], one, use_tqdm=False)
    return {
        "greedy": [list(one.outputs[0].token_ids) for one in said],
        "text": text.prompt_token_ids,
        "chat": chat.prompt_token_ids,
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    answers = os.dup(1)
    os.dup2(2, 1)  # vLLM's engine writes to stdout too
    from vllm import LLM, SamplingParams

    model = LLM(
        sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4,
        kv_cache_memory_bytes=1 << 28,
    )  # fmt: skip
    with os.fdopen(answers, "w") as out:
        json.dump(answer(model, asked, SamplingParams), out)

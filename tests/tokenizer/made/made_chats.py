"""Random conversations, some of them hostile, and templates that models are released with."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bc2.tokenizer.chat import Message

#: Llama 3's own.
LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
#: The ChatML that transformers' documentation gives.
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Qwen 2's own: a system message where there is none.
QWEN2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_WORDS = (
    "hello", "What is", " 2 + 2?", "天地玄黄，", "def f(x):\n\treturn x", "é", "👩‍👩‍👧‍👦",
    "\n", "\n\n", "  ", "\t", "1234567", "<", "|", "<b>", "{{ 7 * 7 }}", "{% raw %}",
    "'", '"', "\\", "I'm", "字" * 40,
)  # fmt: skip


def conversation(chance: random.Random, hostile: Sequence[str] = ()) -> list[Message]:
    """A conversation of up to four rounds that the user or the assistant ends."""
    roles = ["system"] if chance.random() < 0.5 else []
    roles += ["user", "assistant"] * chance.randint(1, 4)
    if chance.random() < 0.5:
        roles.pop()
    words = [*_WORDS, *hostile, *hostile]
    return [
        {"role": role, "content": "".join(chance.choices(words, k=chance.randint(0, 8)))}
        for role in roles
    ]

"""A model to evaluate: trained for a while by bc2, so that its answers meet stop texts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

#: Of the recipe and its checkpoint.
NAME = "bench-eval"

#: 25.0M parameters in the shape of `recipes/bench-generate.toml`, with a layer less.
RECIPE = """\
name = "{name}"
description = "A short-trained model for `benchmarks/evaluation.py`"

[corpus]
heldout_fraction = 0.01
{sources}
[tokenizer]
vocab_size = {vocab_size}
sample_bytes = 20_000_000

[model]
vocab_size = {vocab_size}
hidden_size = 384
intermediate_size = 1024
num_layers = 7
num_heads = 6
context_length = 4096

[pretrain]
length = "{steps} steps"
batch_tokens = {sequence_length}
micro_batch = 1
sequence_length = {sequence_length}
precision = "auto"
checkpoint_every = "{steps} steps"
eval_every = "{steps} steps"
eval_tokens = 4096
sample_prompts = 0
seed = {seed}

[pretrain.weights]
{weights}

[pretrain.optimizer]
learning_rate = 2e-3

[pretrain.schedule]
warmup = "{warmup} steps"
"""

SOURCE = """
[[corpus.sources]]
name = "{name}"
path = {path}
max_bytes = {max_bytes}
"""

#: Files of the corpus, English, Chinese and code.
FILES = ("en_docs", "zh_modern_translation", "zh_tech_wiki_docs", "code")

#: Questions of a document made of GSM8K's training rows.
QUESTIONS = 8

#: What a question asks with, and the length of the answer to it, characters: as those of GSM8K
#: differ. The first that is in a question counts.
LENGTHS = {
    "how much more": 620, "how many more": 480, "left": 150, "$": 240, "how much": 400, "total": 90,
    "how many": 320, "": 200,
}  # fmt: skip


def train_model(
    home: Path, corpus: Path, data: Path, *, steps: int, questions: float, sequence_length: int,
    vocab_size: int, megabytes: int, seed: int,
) -> str:  # fmt: skip
    """Train one on real text and on questions in GSM8K's form; the ref in the registry `home`.

    Of its samples the share `questions` are questions. What it learns from real answers in so
    short a time is endless numbers. Therefore each question has one of a few real answers, after
    the words that it asks with: the model's answers end as a good model's do, at differing lengths,
    with the next question, which is a stop text. What they say is worth nothing.
    """
    home.mkdir(parents=True, exist_ok=True)
    sources = [_source(name, corpus / f"{name}.jsonl.gz", megabytes) for name in FILES]
    sources.append(_source("gsm8k", _gsm8k(data, home / "gsm8k.jsonl", seed), megabytes))
    weights = [
        f"gsm8k = {questions}",
        *(f"{name} = {(1 - questions) / len(FILES)}" for name in FILES),
    ]
    recipe = home / f"{NAME}-{seed}.toml"
    text = RECIPE.format(
        name=NAME, sources="".join(sources), weights="\n".join(weights), vocab_size=vocab_size,
        steps=steps, seed=seed, sequence_length=sequence_length, warmup=max(1, steps // 10),
    )  # fmt: skip
    recipe.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "bc2", "pretrain", str(recipe), "--quiet"]
    environment = {**os.environ, "BC2_HOME": str(home / "registry")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return done.stdout.split()[-1]


def _source(name: str, path: Path, megabytes: int) -> str:
    place = json.dumps(str(path.resolve()))
    return SOURCE.format(name=name, path=place, max_bytes=megabytes * 10**6)


def _gsm8k(data: Path, path: Path, seed: int) -> Path:
    """Documents of several questions and answers, as few-shot prompts have them."""
    with (data / "gsm8k" / "train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(seed).shuffle(rows)
    answers = {
        words: min((row["answer"] for row in rows), key=lambda text: abs(len(text) - length))
        for words, length in LENGTHS.items()
    }
    asked = [
        f"Question: {row['question']}\nAnswer: {answers[_asked_with(row['question'])]}"
        for row in rows
    ]
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, len(asked), QUESTIONS):
            text = "\n\n".join(asked[start : start + QUESTIONS])
            file.write(json.dumps({"text": text}) + "\n")
    return path


def _asked_with(question: str) -> str:
    """The first of `LENGTHS` that is in a question."""
    return next(words for words in LENGTHS if words in question.lower())

"""Fine-tuning speed beside TRL's SFTTrainer, on the same rows, tokens and shape.

    python benchmarks/sft.py alpaca_en.jsonl.gz alpaca_zh.jsonl.gz --peer-python PYTHON

PYTHON is of an environment that has trl and transformers. Rows are drawn at random from all
files; a tokenizer of the model's size is trained on them, and both sides get the same tokens and
labels. Contenders take turns, each in a process of its own: bc2's packed rows; TRL's packing, at
its best number of rows at once; TRL padded to the longest of 16 random rows; and TRL padded to
512. What counts are trained tokens (labels) a second, after the first steps.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the peer's Python need not have bc2 installed

app = typer.Typer(add_completion=False)

LENGTH, ROWS = 1024, 4
#: Steps that are not timed.
WARM = 3
TRIED = (1, 2, 4)


# -- the same tokens for all ---------------------------------------------------------------


def prepare(files: list[Path], count: int, work: Path) -> None:
    """Draw rows, train a tokenizer on them, and write their tokens and labels."""
    import gzip
    import random

    from bc2.align.samples.sample import sample_of
    from bc2.tokenizer.chat_file import chat_named
    from bc2.tokenizer.tokenizer import Tokenizer
    from bc2.tokenizer.tokenizer_config import TokenizerConfig
    from bc2.tokenizer.train import train

    rows = [
        json.loads(line)
        for path in files
        for line in (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8")
    ]
    rows = [row for row in rows if row["output"].strip()]
    drawn = random.Random(0).sample(rows, min(count, len(rows)))
    asked = ["\n\n".join(filter(None, [row["instruction"], row.get("input")])) for row in drawn]
    texts = [f"{question}\n{row['output']}" for question, row in zip(asked, drawn, strict=True)]
    tokenizer = Tokenizer.from_bytes(train(texts, TokenizerConfig(vocab_size=16_384)).model)
    chat = chat_named("baichuan", tokenizer)
    ids, labels, lengths = [], [], []
    for question, row in zip(asked, drawn, strict=True):
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": row["output"]},
        ]
        rendered = chat.render(messages)
        if len(sample_of(rendered).tokens) > LENGTH:
            continue
        ids += rendered.ids
        labels += rendered.labels
        lengths.append(len(rendered.ids))
    np.savez(work / "rows.npz", ids=np.array(ids), labels=np.array(labels), lengths=lengths)


def rows_of(work: Path) -> list[tuple[list[int], list[int]]]:
    """Tokens, and the label at the place of each."""
    data = np.load(work / "rows.npz")
    ends = np.cumsum(data["lengths"])
    spans = zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)
    ids, labels = data["ids"], data["labels"]
    return [(ids[a:b].tolist(), labels[a:b].tolist()) for a, b in spans]


# -- contenders, each in its own process ---------------------------------------------------


def measured(trained: list[int], useful: list[int], computed: list[int], ends: list[float]) -> None:
    """Print the figures of the timed steps; `ends` has the time before the first step too."""
    seconds = ends[-1] - ends[WARM]
    tokens = sum(trained[WARM:])
    print(
        json.dumps(
            {
                "trained_per_s": tokens / seconds,
                "step_s": seconds / (len(trained) - WARM),
                "useful": sum(useful[WARM:]) / sum(computed[WARM:]),
            }
        )
    )


@app.command(hidden=True)
def ours(work: Path, steps: int) -> None:
    """bc2: its stream, engine, objective and optimizer."""
    from bc2.align.samples.row_stream import RowStream
    from bc2.align.samples.sample import sample_of
    from bc2.align.samples.sample_store import SampleChunk, Samples, merge
    from bc2.align.sft.packed_conversations import PackedSamples
    from bc2.align.sft.sft_config import SftConfig
    from bc2.align.sft.sft_objective import WEIGHT, Answers
    from bc2.parallel.mesh import Mesh
    from bc2.tokenizer.chat import Rendered
    from bc2.train.engines.make import make_engine

    every = [sample_of(Rendered(i, one, [1.0] * len(i))) for i, one in rows_of(work)]
    chunk = SampleChunk(every, list(range(len(every))))
    with tempfile.TemporaryDirectory() as folder:
        chunk.write(Path(folder, "chunk.npz"))
        merge([Path(folder, "chunk.npz")], Path(folder))
        samples = Samples.open(Path(folder))
        config = SftConfig(
            init="none", length=f"{steps} steps", batch_tokens=ROWS * LENGTH, micro_batch=ROWS,
            sequence_length=LENGTH, precision="fp32", device="cpu", compile=False,
        )  # fmt: skip
        entries, sources = np.arange(len(samples)), np.zeros(len(samples), np.int64)
        packed = PackedSamples(entries, sources, LENGTH, 0, 2, samples)
        stream = RowStream.of(packed, config, None, ["alpaca"], Mesh(), lambda: None)
        engine = make_engine(shape(), config, None, Mesh())
        trained, useful, computed, ends = [], [], [], [time.perf_counter()]
        with stream.steps(0) as ready:
            for _ in range(steps):
                step = next(ready)
                engine.accumulate(step.batches, Answers(), divisor=step.weights[WEIGHT])
                norm = engine.gradient_norm()
                engine.update(2e-5, norm=norm, clip_norm=1.0)
                trained.append(int(step.weights["tokens"]))
                useful.append(sum(int((b.token_fields["sample"] >= 0).sum()) for b in step.batches))
                computed.append(step.computed)
                ends.append(time.perf_counter())
    measured(trained, useful, computed, ends)


def shape() -> Any:
    """The model of recipes/bench.toml, with room for the rows."""
    from bc2.model.model_config import ModelConfig

    table = tomllib.loads((ROOT / "recipes" / "bench.toml").read_text())["model"]
    return ModelConfig(**{**table, "context_length": LENGTH})


@app.command(hidden=True)
def trl(work: Path, steps: int, how: str, at_once: int) -> None:
    """TRL's SFTTrainer on a Llama of the same shape, with SDPA, in fp32.

    Args:
        how: "packed", "longest" or "padded".
        at_once: rows of a forward pass.
    """
    import torch
    from datasets import Dataset
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from bc2.bench.llama import llama_config

    trained, useful, computed, ends = [], [], [], [time.perf_counter()]
    counts = [0, 0, 0]

    class Counted(SFTTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            ids, labels = inputs["input_ids"], inputs["labels"]
            there = inputs.get("attention_mask")
            counts[0] += int((labels != -100).sum())
            counts[1] += int(there.sum()) if there is not None else ids.numel()
            counts[2] += ids.numel()
            return super().compute_loss(model, inputs, *args, **kwargs)

    class Times(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            for kept, count in zip((trained, useful, computed), counts, strict=True):
                kept.append(count)
            counts[:] = [0, 0, 0]
            ends.append(time.perf_counter())

    rows = rows_of(work)
    length = 512 if how == "padded" else LENGTH
    data = Dataset.from_dict(
        {"input_ids": [i for i, _ in rows], "labels": [one for _, one in rows]}
    )
    model = LlamaForCausalLM(llama_config(shape(), attn_implementation="sdpa"))
    together = ROWS if how == "packed" else 16
    config = SFTConfig(
        output_dir=str(work / "trl"), max_steps=steps, per_device_train_batch_size=at_once,
        gradient_accumulation_steps=together // at_once, max_length=length,
        packing=how == "packed", pad_to_multiple_of=512 if how == "padded" else None,
        learning_rate=2e-5, lr_scheduler_type="constant", adam_beta2=0.98, weight_decay=1e-4,
        max_grad_norm=1.0, bf16=False, use_cpu=True, gradient_checkpointing=False,
        report_to=[], save_strategy="no", logging_steps=1000, disable_tqdm=True, seed=0,
    )  # fmt: skip
    words = PreTrainedTokenizerFast(
        tokenizer_object=_no_tokenizer(), pad_token="<pad>", eos_token="<eos>"
    )
    trainer = Counted(
        model, config, train_dataset=data, processing_class=words, callbacks=[Times()]
    )
    torch.manual_seed(0)
    trainer.train()
    measured(trained, useful, computed, ends)


def _no_tokenizer() -> Any:
    """The rows are tokens already; the trainer asks for something that pads."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 2}, unk_token="<pad>"))


# -- in turn -------------------------------------------------------------------------------


def run(python: str, *words: str) -> dict[str, float]:
    command = [python, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@app.command()
def compare(
    files: list[Path],
    peer_python: Annotated[str, typer.Option(help="A Python with trl and transformers.")],
    steps: int = 60,
    padded_steps: Annotated[int, typer.Option(help="Of 16 padded rows, which take long.")] = 60,
    rounds: int = 3,
    rows: Annotated[int, typer.Option(help="Conversations that are drawn.")] = 20_000,
) -> None:
    """Measure all contenders in turn, and print medians with their spread."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(files, rows, work)
        tried = {n: run(peer_python, "trl", folder, str(WARM + 2), "packed", str(n)) for n in TRIED}
        best = max(tried, key=lambda n: tried[n]["trained_per_s"])
        shown = {n: round(found["trained_per_s"]) for n, found in tried.items()}
        print(f"TRL packed, rows at once: {shown}; {best} it is", flush=True)
        contenders = {
            "bc2": (sys.executable, "ours", folder, str(steps)),
            "TRL packed": (peer_python, "trl", folder, str(steps), "packed", str(best)),
            "TRL, longest of 16": (peer_python, "trl", folder, str(padded_steps), "longest", "16"),
            "TRL, 512": (peer_python, "trl", folder, str(padded_steps), "padded", "16"),
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for number in range(rounds):
            for name, words in contenders.items():
                found[name].append(run(*words))
                print(number + 1, name, found[name][-1], flush=True)
    for name, every in found.items():
        speeds = [one["trained_per_s"] for one in every]
        ratios = [
            ours["trained_per_s"] / theirs
            for ours, theirs in zip(found["bc2"], speeds, strict=True)
        ]
        print(
            f"{name}: {statistics.median(speeds):,.0f} trained tokens/s "
            f"({min(speeds):,.0f} to {max(speeds):,.0f}), {every[0]['useful']:.1%} useful; "
            f"bc2 is {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    app()

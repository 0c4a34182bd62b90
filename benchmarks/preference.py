"""Reward models and DPO beside TRL's trainers, on the same pairs, tokens and shape.

    python benchmarks/preference.py compare hh_rlhf.jsonl.gz --peer-python PYTHON
    PYTHON benchmarks/preference.py parity

PYTHON is of an environment that has trl and transformers. The pairs are dialogues of hh-rlhf; a
tokenizer of the model's size is trained on them, and both sides get the same tokens. Contenders
take turns, each in a process of its own; TRL at its best number of pairs at once. The reference's
log-probabilities are computed before on both sides. What counts are pairs a second, after the
first steps, and the peak of memory.
"""

from __future__ import annotations

import json
import resource
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

#: Tokens of a row, and of an answer with its prompt at most.
LENGTH, LONGEST = 2048, 1024
#: Pairs that TRL puts into a step; ours are about as many.
STEP = 16
#: Steps that are not timed.
WARM = 2
BETA = 0.1


# -- the same tokens for all ---------------------------------------------------------------


def prepare(file: Path, work: Path) -> None:
    """Train a tokenizer on the dialogues, and write the tokens of prompts and answers."""
    import gzip

    from bc2.data.pairs.dialogues import dialogue_messages
    from bc2.tokenizer.chat_file import chat_named
    from bc2.tokenizer.tokenizer import Tokenizer
    from bc2.tokenizer.tokenizer_config import TokenizerConfig
    from bc2.tokenizer.train import train

    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [row["chosen"] for row in rows]
    tokenizer = Tokenizer.from_bytes(train(texts, TokenizerConfig(vocab_size=16_384)).model)
    chat = chat_named("baichuan", tokenizer)
    kept = []
    for row in rows:
        both = [
            chat.render(dialogue_messages(row[which], which)).ids
            for which in ("chosen", "rejected")
        ]
        common = next((at for at, (a, b) in enumerate(zip(*both, strict=False)) if a != b), 0)
        if common and max(map(len, both)) <= LONGEST and common < min(map(len, both)):
            kept.append([both[0][:common], both[0][common:], both[1][common:]])
    (work / "pairs.json").write_text(json.dumps(kept))


def pairs_of(work: Path) -> list[tuple[list[int], list[int], list[int]]]:
    """Of each pair the tokens of its prompt, and of both answers."""
    return [tuple(pair) for pair in json.loads((work / "pairs.json").read_text())]


# -- contenders, each in its own process ---------------------------------------------------


def measured(pairs: list[int], ends: list[float]) -> None:
    """Print the figures of the timed steps; `ends` has the time before the first step too."""
    seconds = ends[-1] - ends[WARM]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"pairs_per_s": sum(pairs[WARM:]) / seconds, "peak_gb": peak / 1e9}
    print(json.dumps(found | {"pairs": sum(pairs[WARM:]), "seconds": seconds}))


def packed(work: Path, reward: bool, fields: dict[str, Any]) -> Any:
    """The pairs as bc2 packs them."""
    from bc2.align.pairs.packed_pairs import PackedPairs
    from bc2.align.pairs.pair_samples import PairSamples
    from bc2.align.samples.sample import sample_of
    from bc2.align.samples.sample_store import SampleChunk, Samples, merge
    from bc2.data.pairs.pairs import PairTable
    from bc2.tokenizer.chat import Rendered

    pairs = pairs_of(work)
    every = [
        sample_of(
            Rendered(
                prompt + answer, [-100] * len(prompt) + answer, [1.0] * (len(prompt) + len(answer))
            )
        )
        for prompt, *answers in pairs
        for answer in answers
    ]
    with tempfile.TemporaryDirectory() as folder:
        SampleChunk(every, list(range(len(every)))).write(Path(folder, "chunk.npz"))
        merge([Path(folder, "chunk.npz")], Path(folder))
        samples = Samples.open(Path(folder))
        place, none = np.arange(len(pairs)), np.full((len(pairs), 2), np.nan)
        sources = np.zeros(len(pairs), np.int64)
        table = PairTable(place, place, 2 * place, 2 * place + 1, sources, none, none)
        found = PairSamples.of(table, samples, LENGTH, ends=reward)
        return PackedPairs(place, sources, LENGTH, 0, 2, found, reward, fields)


@app.command(hidden=True)
def ours(work: Path, steps: int, kind: str, vocab: int = 0) -> None:
    """bc2: its stream, engine, objective and optimizer."""
    from bc2.align.dpo.dpo_config import DpoConfig
    from bc2.align.dpo.dpo_objective import REFERENCE, PreferredAnswers
    from bc2.align.reward.reward_config import RewardConfig
    from bc2.align.reward.reward_objective import ALPHA, TARGET, PairwiseScores
    from bc2.align.samples.row_stream import RowStream
    from bc2.parallel.mesh import Mesh
    from bc2.train.engines.make import make_engine

    reward = kind == "reward"
    none = np.zeros((len(pairs_of(work)), 2))
    rows = packed(work, reward, {TARGET: none, ALPHA: none} if reward else {REFERENCE: none})
    each = len(rows.pairs) / rows.first_row(1)
    at_once = max(1, round(STEP / each / 2))
    settings = {
        "init": "none", "length": f"{steps} steps", "batch_tokens": 2 * at_once * LENGTH,
        "micro_batch": at_once, "sequence_length": LENGTH, "precision": "fp32", "device": "cpu",
        "compile": False,
    }  # fmt: skip
    config = RewardConfig(**settings) if reward else DpoConfig(**settings, beta=BETA)
    objective = PairwiseScores() if reward else PreferredAnswers(config)
    model = shape(vocab).model_copy(update={"head": "scalar"} if reward else {})
    stream = RowStream.of(rows, config, None, ["hh"], Mesh(), lambda: None)
    engine = make_engine(model, config, None, Mesh())
    counts, ends = [], [time.perf_counter()]
    with stream.steps(0) as ready:
        for _ in range(steps):
            step = next(ready)
            engine.accumulate(step.batches, objective, divisor=step.weights["pairs"])
            engine.update(1e-6, norm=engine.gradient_norm(), clip_norm=1.0)
            counts.append(int(step.weights["pairs"]))
            ends.append(time.perf_counter())
    measured(counts, ends)


def shape(vocab: int = 0) -> Any:
    """The model of recipes/bench.toml, with room for the rows."""
    from bc2.model.model_config import ModelConfig

    table = tomllib.loads((ROOT / "recipes" / "bench.toml").read_text())["model"]
    more = {"vocab_size": vocab} if vocab else {}
    return ModelConfig(**{**table, "context_length": LENGTH, **more})


@app.command(hidden=True)
def trl(work: Path, steps: int, kind: str, at_once: int, vocab: int = 0) -> None:
    """TRL's RewardTrainer or DPOTrainer on a Llama of the same shape, with SDPA, in fp32."""
    import torch
    from transformers import TrainerCallback

    from bc2.bench.llama import llama_config

    counts, ends = [], [time.perf_counter()]

    class Times(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            counts.append(STEP)
            ends.append(time.perf_counter())

    settings = llama_config(shape(vocab), attn_implementation="sdpa")
    settings.pad_token_id = 0
    common = {
        "output_dir": str(work / "trl"), "max_steps": steps, "max_length": LONGEST,
        "per_device_train_batch_size": at_once, "gradient_accumulation_steps": STEP // at_once,
        "learning_rate": 1e-6, "lr_scheduler_type": "constant", "bf16": False, "use_cpu": True,
        "gradient_checkpointing": False, "report_to": [], "save_strategy": "no",
        "logging_steps": 1000, "disable_tqdm": True, "seed": 0,
    }  # fmt: skip
    trainer = trainer_of(kind, settings, common, pairs_of(work), [Times()])
    torch.manual_seed(0)
    trainer.train()
    measured(counts, ends)


def trainer_of(
    kind: str, settings: Any, common: dict[str, Any], pairs: Any, callbacks: list[Any],
    model: Any = None, **more: Any,
) -> Any:  # fmt: skip
    """A trainer of TRL on pairs of tokens, with the reference's log-probabilities given."""
    from datasets import Dataset
    from transformers import (
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    words = PreTrainedTokenizerFast(
        tokenizer_object=_no_tokenizer(), pad_token="<pad>", eos_token="<eos>"
    )
    if kind == "reward":
        settings.num_labels = 1
        data = Dataset.from_dict(
            {
                "chosen_ids": [prompt + chosen for prompt, chosen, _ in pairs],
                "rejected_ids": [prompt + rejected for prompt, _, rejected in pairs],
            }
        )
        model = model or LlamaForSequenceClassification(settings)
        return RewardTrainer(
            model, RewardConfig(**common, **more), train_dataset=data, processing_class=words,
            callbacks=callbacks,
        )  # fmt: skip

    class Ready(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # they are tokens already

        def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    data = Dataset.from_dict(
        {
            "prompt_ids": [prompt for prompt, *_ in pairs],
            "chosen_ids": [chosen for _, chosen, _ in pairs],
            "rejected_ids": [rejected for *_, rejected in pairs],
            "ref_chosen_logps": more.pop("chosen", [0.0] * len(pairs)),
            "ref_rejected_logps": more.pop("rejected", [0.0] * len(pairs)),
        }
    )
    config = DPOConfig(**common, precompute_ref_log_probs=True, beta=BETA, **more)
    return Ready(
        model or LlamaForCausalLM(settings), args=config, train_dataset=data,
        processing_class=words, callbacks=callbacks,
    )  # fmt: skip


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
    file: Path,
    peer_python: Annotated[str, typer.Option(help="A Python with trl and transformers.")],
    steps: int = 8,
    rounds: int = 3,
    kinds: str = "reward,dpo",
    vocab: Annotated[int, typer.Option(help="Rows of the model; 0: the recipe's.")] = 0,
    tried: Annotated[str, typer.Option(help="Pairs at once that TRL tries.")] = "2,4,8",
) -> None:
    """Measure all contenders in turn, and print medians with their spread."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(file, Path(folder))
        more = ["--vocab", str(vocab)]
        for kind in kinds.split(","):
            first = {
                n: run(peer_python, "trl", folder, str(WARM + 2), kind, n, *more)
                for n in tried.split(",")
            }
            best = max(first, key=lambda n: first[n]["pairs_per_s"])
            shown = {n: round(found["pairs_per_s"], 2) for n, found in first.items()}
            print(f"{kind}: TRL, pairs at once: {shown}; {best} it is", flush=True)
            mine, theirs = [], []
            for number in range(rounds):
                mine.append(run(sys.executable, "ours", folder, str(steps), kind, *more))
                theirs.append(run(peer_python, "trl", folder, str(steps), kind, best, *more))
                print(number + 1, kind, mine[-1], theirs[-1], flush=True)
            ratios = [
                a["pairs_per_s"] / b["pairs_per_s"] for a, b in zip(mine, theirs, strict=True)
            ]
            for name, every in (("bc2", mine), ("TRL", theirs)):
                speeds = [one["pairs_per_s"] for one in every]
                peaks = [one["peak_gb"] for one in every]
                print(
                    f"{kind}, {name}: {statistics.median(speeds):.2f} pairs/s "
                    f"({min(speeds):.2f} to {max(speeds):.2f}), peak {max(peaks):.2f} GB"
                )
            print(
                f"{kind}: bc2 is {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
                f"{max(ratios):.2f}) times as fast",
                flush=True,
            )


# -- the same losses -----------------------------------------------------------------------


@app.command()
def parity(seed: int = 0) -> None:
    """Losses and gradients of TRL's trainers and of bc2, of the same weights and pairs, in fp32."""
    import torch
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification

    from bc2.align.dpo.dpo_config import DpoConfig
    from bc2.align.dpo.dpo_objective import REFERENCE, PreferredAnswers
    from bc2.align.reward.reward_objective import ALPHA, TARGET, PairwiseScores
    from bc2.bench.llama import llama_config
    from bc2.model.model_config import ModelConfig
    from bc2.model.transformer import Transformer

    rng = np.random.default_rng(seed)
    pairs = [
        tuple(rng.integers(3, 128, int(rng.integers(2, 20))).tolist() for _ in range(3))
        for _ in range(8)
    ]
    pairs = [(p, c, r) for p, c, r in pairs if c[0] != r[0]]
    reference = rng.normal(-60, 10, (len(pairs), 2)).astype(np.float32)
    small = ModelConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4,
        context_length=LENGTH, norm_head=False,
    )  # fmt: skip
    for kind, loss, theirs in (
        ("reward", "", ""), ("dpo", "dpo", "sigmoid"),
        ("dpo", "length_normalised", "sigmoid_norm"), ("dpo", "ipo", "ipo"),
    ):  # fmt: skip
        torch.manual_seed(seed)
        settings = llama_config(small, attn_implementation="sdpa")
        settings.pad_token_id = 0
        settings.num_labels = 1
        reward = kind == "reward"
        made = (LlamaForSequenceClassification if reward else LlamaForCausalLM)(settings)
        common = {
            "output_dir": tempfile.mkdtemp(), "max_steps": 1, "max_length": LONGEST,
            "per_device_train_batch_size": len(pairs), "use_cpu": True, "bf16": False,
            "gradient_checkpointing": False, "report_to": [], "save_strategy": "no",
        }  # fmt: skip
        more = {} if reward else {
            "loss_type": [theirs], "chosen": reference[:, 0].tolist(),
            "rejected": reference[:, 1].tolist(),
        }  # fmt: skip
        trainer = trainer_of(kind, settings, common, pairs, [], made, **more)
        made.eval()  # no dropout is in it; and nothing is logged
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(pairs))])
        found = trainer.compute_loss(made.train(), batch)
        found.backward()
        model = Transformer(small.model_copy(update={"head": "scalar"} if reward else {}))
        model.load_state_dict(_weights(made, small.num_layers))
        fields = (
            {TARGET: np.zeros((len(pairs), 2)), ALPHA: np.zeros((len(pairs), 2))}
            if reward else {REFERENCE: reference.astype(np.float64)}
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "pairs.json").write_text(json.dumps(pairs))
            rows = packed(Path(folder), reward, fields)
            batch = rows.batch(range(rows.first_row(1)))
        if reward:
            objective: Any = PairwiseScores()
        else:
            named = {"init": "x", "length": "1 steps", "batch_tokens": LENGTH, "micro_batch": 1}
            config = DpoConfig(**named, sequence_length=LENGTH, beta=BETA, loss=loss)
            objective = PreferredAnswers(config)
        mine = objective(model, batch).total / len(pairs)
        mine.backward()
        name = "model.layers.0.mlp.up_proj.weight"
        grads = [dict(one.named_parameters())[name].grad for one in (model, made)]
        apart = float((grads[0] - grads[1]).norm() / grads[1].norm())
        print(
            f"{kind} {loss}: bc2 {float(mine):.8f}, TRL {float(found):.8f}, relative difference "
            f"{abs(float(mine / found) - 1):.2e}, gradient {apart:.2e}"
        )


def _weights(made: Any, layers: int) -> dict[str, Any]:
    """A Llama's weights under bc2's names."""
    import torch

    state = dict(made.state_dict())
    for layer in range(layers):
        at = f"model.layers.{layer}.self_attn."
        parts = [state.pop(f"{at}{one}_proj.weight") for one in "qkv"]
        state[f"{at}W_pack.weight"] = torch.cat(parts)
    return state


if __name__ == "__main__":
    app()

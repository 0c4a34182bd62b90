"""A contender's training steps: ours or transformers' Llama, eager or compiled."""

from __future__ import annotations

import csv
import gzip
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bc2.bench.llama import llama_config
from bc2.data.loader import Batch
from bc2.train.device import datasheet_flops
from bc2.train.optimizer import AdamW as FusedAdamW
from gpu_stages.checks import Checks
from gpu_stages.env import best_seconds, wait
from gpu_stages.kernels import on_gpu
from gpu_stages.plain_configs import LADDER_1_6B, AdamW, Model
from gpu_stages.training import SMALL, packed, quick_engine, random_rows, step

#: Sequences of a micro-batch, in order of what matters, and of a step.
MICRO_BATCHES = (4, 1)

#: Measured steps, after some that load and compile.
WARM, MEASURED = 3, 5

#: Bytes of a trace at most.
_MOST_TRACE = 2_000_000

Stepper = Callable[[Batch], float]


def run(checks: Checks, part: str) -> None:
    """`part` is the contender: ours-compiled, ours-eager, hf-compiled or hf-eager."""
    model = SMALL if checks.small else LADDER_1_6B
    length = 64 if checks.small else 4096
    with checks.part(part):
        stepper = (_ours if part.startswith("ours") else _llama)(
            model, checks, part.endswith("compiled")
        )
        began = time.monotonic()
        for micro_batch in MICRO_BATCHES:
            name = f"{part} with {micro_batch} sequences"
            # Another shape is compiled anew.
            if micro_batch != MICRO_BATCHES[0] and checks.left() < time.monotonic() - began:
                checks.not_run(name, f"{checks.left():.0f} s are left")
                continue
            with checks.part(name):
                _measure(checks, part, stepper, model, length, micro_batch)
            if part == "ours-compiled" and micro_batch == MICRO_BATCHES[0]:
                with checks.part("profile"):
                    batch = packed(random_rows(model, micro_batch, length, 1, documents=False))
                    _profile(checks, lambda batch=batch: stepper(batch))


def _ours(model: Model, checks: Checks, compiled: bool) -> Stepper:
    precision = "fp32" if checks.small else "bf16"
    engine = quick_engine(model, checks.device, precision, compile=compiled)
    return lambda batch: step(engine, [batch], learning_rate=2e-4).loss


def _llama(model: Model, checks: Checks, compiled: bool) -> Stepper:
    """The fastest way to train it in one process: weights and Adam's state in bf16, SDPA.

    Ours updates fp32 weights, which moves three times the bytes.
    """
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(checks.device):
        llama = LlamaForCausalLM(llama_config(model, use_cache=False, attn_implementation="sdpa"))
    llama = llama.to(torch.float32 if checks.small else torch.bfloat16).train()
    forward: Any = torch.compile(llama, dynamic=False) if compiled else llama
    weights = dict(llama.named_parameters())
    shapes = {name: weight.shape for name, weight in weights.items()}
    settings: Any = AdamW()
    optimizer = FusedAdamW(weights, shapes, settings)

    def make_step(batch: Batch) -> float:
        tokens = torch.from_numpy(batch.tokens).to(checks.device, non_blocking=True)
        loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), settings.clip_norm)
        optimizer.inner.step()
        optimizer.inner.zero_grad(set_to_none=True)
        return float(loss.detach())

    return make_step


def _measure(
    checks: Checks, part: str, stepper: Stepper, model: Model, length: int, micro_batch: int
) -> None:
    rows = [random_rows(model, micro_batch, length, n, documents=False) for n in range(WARM)]
    batches = [packed(some) for some in rows]
    began = time.perf_counter()
    for batch in batches:
        stepper(batch)
    wait(checks.device)
    warm = time.perf_counter() - began
    if checks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(checks.device)
    seconds = []
    for number in range(MEASURED):
        began = time.perf_counter()
        loss = stepper(batches[number % WARM])
        wait(checks.device)
        seconds.append(time.perf_counter() - began)
    checks.true(f"{part} {micro_batch}: the loss is a number", loss == loss, loss, "or it failed")
    took = statistics.median(seconds)
    tokens = micro_batch * length
    peak, source = _peak(checks)
    flops = model.flops_per_token(length) * tokens / took
    checks.record(
        "bench",
        {
            "contender": part,
            "micro_batch": micro_batch,
            "shape": f"{model.num_params_non_embedding() / 1e6:,.2f}M and vocabulary "
            f"{model.vocab_size:,}",
            "sequence_length": length,
            "precision": "fp32" if checks.small else "bf16",
            "ms": took * 1e3,
            "all_ms": [round(s * 1e3, 2) for s in seconds],
            "warm_s": round(warm, 1),
            "tokens_per_s": tokens / took,
            "mfu_percent": 100 * flops / peak,
            "peak_tflops": peak / 1e12,
            "peak_source": source,
            "peak_gb": None if checks.small else torch.cuda.max_memory_allocated() / 1e9,
            "loss": loss,
        },
    )
    if micro_batch == MICRO_BATCHES[0]:
        checks.figure(part, round(tokens / took), "tokens/s", key=True)


def _peak(checks: Checks) -> tuple[float, str]:
    """FLOP/s that MFU is a share of, and where it is from."""
    known = datasheet_flops(checks.device, "bf16")
    if known is not None:
        return known
    side = 512 if checks.small else 8192
    dtype = torch.float32 if checks.small else torch.bfloat16
    a = torch.randn(side, side, device=checks.device, dtype=dtype)
    return 2 * side**3 / best_seconds(lambda: a @ a, checks.device), f"a product of {side}³ here"


def _profile(checks: Checks, act: Callable[[], object]) -> None:
    """kernels.csv by time, and a trace of one step."""
    kinds = [ProfilerActivity.CPU] + ([] if checks.small else [ProfilerActivity.CUDA])
    wait(checks.device)
    with profile(activities=kinds) as watched:
        act()
        wait(checks.device)
    _write_kernels(checks, watched.key_averages())
    plain = checks.scratch / "trace.json"
    watched.export_chrome_trace(str(plain))
    packed_trace = gzip.compress(plain.read_bytes(), 9)
    if len(packed_trace) > _MOST_TRACE:
        checks.not_run("trace", f"its {len(packed_trace):,} bytes are more than {_MOST_TRACE:,}")
        return
    (checks.out / "trace.json.gz").write_bytes(packed_trace)


def _write_kernels(checks: Checks, events: Any) -> None:
    """Kernels on a GPU, operators on a CPU; microseconds of one step."""
    on_device = not checks.small
    rows = [
        (e.key, e.self_device_time_total if on_device else e.self_cpu_time_total, e.count)
        for e in events
        if not on_device or on_gpu(e)
    ]
    rows.sort(key=lambda row: -row[1])
    total = sum(row[1] for row in rows)
    with Path(checks.out / "kernels.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("kernel", "microseconds", "share", "calls"))
        for name, microseconds, calls in rows[:200]:
            share = microseconds / total if total else 0.0
            writer.writerow((name[:200], round(microseconds, 1), round(share, 4), calls))
    if on_device:
        checks.true("the profiler sees kernels", bool(rows), len(rows), "or kernels.csv is empty")
        checks.figure("kernels of a step", sum(row[2] for row in rows), key=True)
        checks.figure("time in kernels", round(total / 1e3, 1), "ms")

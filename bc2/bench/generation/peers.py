"""The peers: transformers' Llama in static batches, and in its own continuous batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bc2.bench.generation.job import Job
from bc2.bench.generation.models import build_llama
from bc2.bench.generation.outcome import Outcome, Pair

#: Tokens of a page of the cache of continuous batches: a smaller one wastes less, and gives
#: longer lists of pages.
PAGE_TOKENS = 32

#: Prompt tokens that continuous batches may read in a step.
STEP_TOKENS = 512

#: Seconds to wait for a result before looking whether the thread that makes them is alive.
_PATIENCE_S = 1.0


class StaticBatches:
    """`generate()` on batches padded to their longest prompt and run to their longest answer.

    Args:
        by_answer: sort by the length of the answers first, so that little is wasted.
    """

    def __init__(self, job: Job, *, by_answer: bool):
        self.model = build_llama(job)
        self.device = torch.device(job.device)
        self.by_answer = by_answer

    def decode(self, pairs: Sequence[Pair], size: int) -> Outcome:
        """Continue all prompts, `size` of them together."""
        order = list(range(len(pairs)))
        if self.by_answer:
            order.sort(key=lambda index: pairs[index][1])
        answers: list[list[int]] = [[] for _ in pairs]
        first = [0.0] * len(pairs)
        began = time.perf_counter()
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            made, at = self._batch([pairs[index] for index in batch])
            for index, ids in zip(batch, made, strict=True):
                answers[index] = ids
                first[index] = at - began
        return Outcome(time.perf_counter() - began, first, answers)

    def _batch(self, batch: Sequence[Pair]) -> tuple[list[list[int]], float]:
        """The answers, each cut to its length, and when the first token was there."""
        width = max(len(prompt) for prompt, _ in batch)
        most = max(new for _, new in batch)
        pads = [[0] * (width - len(prompt)) for prompt, _ in batch]
        both = list(zip(pads, batch, strict=True))
        ids = torch.tensor([pad + prompt for pad, (prompt, _) in both], device=self.device)
        mask = torch.tensor(
            [pad + [1] * len(prompt) for pad, (prompt, _) in both], device=self.device
        )
        clock = _FirstToken()
        made = self.model.generate(
            ids, attention_mask=mask, do_sample=False, min_new_tokens=most, max_new_tokens=most,
            stopping_criteria=[clock],
        )  # fmt: skip
        assert clock.at is not None
        rows = made[:, width:].tolist()
        return [row[:new] for row, (_, new) in zip(rows, batch, strict=True)], clock.at


class _FirstToken:
    """Notes when the first token of a batch was chosen; stops nothing."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if self.at is None:
            if ids.is_cuda:
                # So far the token may only have been asked for.
                torch.cuda.synchronize(ids.device)
            self.at = time.perf_counter()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


class ContinuousBatches:
    """`generate_batch()`'s manager, with the length of each answer given to it.

    Its attention on a CPU computes every query against the keys of all sequences and masks
    those of the others, so that few sequences at once can be faster than many.
    """

    def __init__(self, job: Job):
        self.model = build_llama(job)
        self.cuda = torch.device(job.device).type == "cuda"

    def decode(self, pairs: Sequence[Pair], size: int) -> Outcome:
        """Continue all prompts, at most `size` of them at once."""
        from transformers import GenerationConfig

        answers: list[list[int]] = [[] for _ in pairs]
        first = [0.0] * len(pairs)
        make: Any = GenerationConfig  # whose constructor has no types
        greedy = make(
            do_sample=False, max_new_tokens=max(new for _, new in pairs), eos_token_id=-1,
            pad_token_id=0,
        )  # fmt: skip
        began = time.perf_counter()
        with self.model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=self._config(pairs, size)
        ) as manager:
            for index, (prompt, new) in enumerate(pairs):
                manager.add_request(
                    prompt, request_id=str(index), max_new_tokens=new, eos_token_id=-1,
                    record_timestamps=True,
                )  # fmt: skip
            for result in _results(manager, len(pairs)):
                index = int(result.request_id)
                answers[index] = result.generated_tokens
                first[index] = result.timestamps[0] - began
        return Outcome(time.perf_counter() - began, first, answers)

    def _config(self, pairs: Sequence[Pair], size: int) -> Any:
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        if self.cuda:
            # It knows the GPU's memory and takes what is best there.
            return ContinuousBatchingConfig(max_requests_per_batch=size)
        most = max(len(prompt) + new for prompt, new in pairs) // PAGE_TOKENS + 2
        return ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=size * most,
            max_batch_tokens=max(size, STEP_TOKENS),
            max_requests_per_batch=size,
            # Different prompts: looking for common beginnings costs and finds nothing.
            allow_block_sharing=False,
        )


def _results(manager: Any, count: int) -> Iterator[Any]:
    """The finished requests, as they come.

    Raises:
        RuntimeError: one failed, or the thread that makes them ended.
    """
    left = count
    while left:
        result = manager.get_result(timeout=_PATIENCE_S)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("the thread of the continuous batches ended")
        elif result.error is not None:
            raise RuntimeError(result.error)
        elif result.is_finished():
            left -= 1
            yield result

"""lm-eval's `HFLM`, unchanged but for its tokenizer, and a clock around the model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM
from torch import Tensor

from bc2.bench.generation.job import Job
from bc2.bench.generation.models import build_llama
from bc2.generate.engine_config import EngineConfig
from bc2.model.store import load_config
from bc2.tokenizer.tokenizer import Tokenizer
from lm_eval_peer.plain_tokenizer import PlainTokenizer


class TimedHFLM(HFLM):
    """The `hf` model of lm-eval, `logits_cache` on as by default.

    Attributes:
        model_s: seconds inside of the model: forward passes for scoring, and transformers'
            `generate`. The log-softmax of all logits, which lm-eval computes around a forward
            pass, is not counted.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, batch_size: int):
        self._plain = PlainTokenizer(tokenizer)
        # An answer ends at the end of text, as in a model that was converted.
        for config in (model.config, model.generation_config):
            config.bos_token_id, config.eos_token_id = None, tokenizer.eos_id
            config.pad_token_id = tokenizer.pad_id
        super().__init__(pretrained=model, batch_size=batch_size)
        self.model_s = 0.0

    def _create_tokenizer(self, *_: Any, **__: Any) -> None:
        self.tokenizer = self._plain

    def _model_call(self, *args: Any, **kwargs: Any) -> Tensor:
        began = time.perf_counter()
        found = super()._model_call(*args, **kwargs)
        self.model_s += time.perf_counter() - began
        return found

    def _model_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        began = time.perf_counter()
        found = super()._model_generate(*args, **kwargs)
        self.model_s += time.perf_counter() - began
        return found


def load_llama(checkpoint: Path) -> Any:
    """Transformers' Llama in fp32 with the weights of a checkpoint's directory."""
    job = Job(
        kind="hf-static", model=load_config(checkpoint), checkpoint=str(checkpoint), seed=0,
        precision="fp32", device="cpu", engine=EngineConfig(), work="",
    )  # fmt: skip
    return build_llama(job)

"""What bc2 says of a model whose weights are rounded as those that are written, in fp32.

Shapes: T tokens, V rows of the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bc2 import __version__
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan
from bc2.convert.exporting.target_rows import UNIT_ROWS
from bc2.convert.proof.angles import Angles, rounded_angles
from bc2.convert.proof.consumer import Padding
from bc2.convert.proof.quantized_weights import QuantizedWeight, quantized_weights
from bc2.convert.proof.written_tensors import written_tensors
from bc2.convert.stored_tensor import StoredTensor, safetensors_of
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Request
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.heads import normalize_rows
from bc2.model.model_config import ModelConfig
from bc2.model.safetensors_file import DTYPES
from bc2.model.store import expected_shapes, load_config
from bc2.model.transformer import Transformer

_HEAD = "lm_head.weight"

#: Tokens whose keys are held: of a prompt, and what continues it.
_CACHED = 256

#: Rows of logits that are changed at once.
_ROWS = 64

#: Numbers that are rounded at once.
_AT_ONCE = 4 << 20


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor, and the type that they are rounded to."""

    name: str
    """Of the tensor that they become part of."""
    source: str
    """Of the checkpoint's tensor that they are of."""
    first: int
    rows: int
    dtype: str
    unit: bool
    """Whether they are scaled to unit length before they are rounded."""
    written: str
    """The name that they are written under."""


@dataclass(frozen=True)
class Rounding:
    """A checkpoint, and how its weights are rounded."""

    checkpoint: str
    """Its folder."""
    files: tuple[str, ...]
    pieces: tuple[Piece, ...]
    written: tuple[str, ...] = ()
    """Files of quantised weights, which stand for themselves."""
    angles: Angles = "exact"
    """How rotary angles are rounded."""

    @classmethod
    def of(cls, source: SourceModel, plan: ExportPlan, folder: Path) -> Rounding:
        """As a plan writes them into a folder. GGUF's blocks of numbers are compared with fp32."""
        pieces = tuple(
            Piece(
                _HEAD if target.change is UNIT_ROWS else target.source,
                target.source,
                target.first,
                target.shape[0],
                target.dtype if target.dtype in DTYPES else "F32",
                target.change is UNIT_ROWS,
                target.name,
            )
            for target in (plan.before or plan).tensors
        )
        files = sorted({str(tensor.path) for tensor in source.weights.values()})
        written = sorted(str(folder / name) for name in plan.sizes) if plan.before else []
        angles: Angles = "chained" if plan.prover == "llama.cpp" else "exact"
        return cls(str(source.artifact.path), tuple(files), pieces, tuple(written), angles)

    @property
    def folded(self) -> bool:
        """Whether the head's rows are written with unit length."""
        return any(piece.unit for piece in self.pieces)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Rounding:
        pieces = tuple(Piece(**piece) for piece in data["pieces"])
        files, written = tuple(data["files"]), tuple(data["written"])
        return cls(data["checkpoint"], files, pieces, written, data["angles"])

    def few_bits(self) -> dict[str, QuantizedWeight]:
        """The quantised weights by their written names."""
        if not self.written:
            return {}
        folder = Path(self.written[0]).parent
        found, _ = written_tensors(folder, [Path(path).name for path in self.written])
        return quantized_weights(found)

    def config(self) -> ModelConfig:
        """The model's shape: a folded head is a plain one of its own."""
        config = load_config(Path(self.checkpoint))
        if not self.folded:
            return config
        return ModelConfig.model_validate(
            {**config.model_dump(), "norm_head": False, "tied": False}
        )


class OurModel:
    """A `ComputedModel`."""

    name = "bc2"
    version: str = __version__

    def __init__(self, rounding: Rounding):
        self._model = _load(rounding)
        self._angles = rounding.angles
        config = self._model.config
        each = 2 * config.num_layers * config.kv_heads * config.head_size * 4
        settings = EngineConfig(cache_bytes=_CACHED * each)
        self._engine = InferenceEngine(self._model, settings, eos_id=-1)

    @torch.no_grad()
    def log_probs(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        ends = torch.tensor([0, len(ids)], dtype=torch.int32)
        with rounded_angles(self._angles):
            logits = self._model.logits(self._model(torch.tensor(ids), ends, len(ids)))
        for rows in torch.split(logits, _ROWS):  # in place: of a large vocabulary they are much
            rows -= rows.logsumexp(-1, keepdim=True)
        return cast("npt.NDArray[np.float32]", logits.numpy())

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        settings = SamplingConfig(temperature=0.0, max_new_tokens=count)
        with rounded_angles(self._angles):
            (said,) = self._engine.generate([Request(list(ids), settings)])
        return said.continuations[0].ids


class OurScores:
    """A `ScoringModel`; it pads nothing."""

    name = "bc2"
    version: str = __version__

    def __init__(self, rounding: Rounding):
        self._model = _load(rounding)

    @torch.no_grad()
    def scores(self, texts: Sequence[Sequence[int]], padding: Padding) -> list[float]:
        return [self._score(ids) for ids in texts]

    def _score(self, ids: Sequence[int]) -> float:
        ends = torch.tensor([0, len(ids)], dtype=torch.int32)
        hidden = self._model(torch.tensor(ids), ends, len(ids))
        return float(self._model.values(hidden[-1:]))


def _load(rounding: Rounding) -> Transformer:
    config = rounding.config()
    stored = {
        name: tensor
        for file in rounding.files
        for name, tensor in safetensors_of(Path(file)).items()
    }
    state = {name: torch.empty(shape) for name, shape in expected_shapes(config).items()}
    few_bits = rounding.few_bits()
    for piece in rounding.pieces:
        if piece.name not in state:
            continue  # a tied head is written a second time by some formats
        if piece.written in few_bits:
            rows = torch.from_numpy(few_bits[piece.written].rows(0, piece.rows))
            state[piece.name][piece.first : piece.first + piece.rows] = rows
        else:
            _fill(state[piece.name], stored[piece.source], piece)
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _fill(into: Tensor, stored: StoredTensor, piece: Piece) -> None:
    at = piece.first
    for rows in _blocks(stored, piece):
        into[at : at + len(rows)] = rows
        at += len(rows)


def _blocks(stored: StoredTensor, piece: Piece) -> Iterator[Tensor]:
    """The rows in fp32, after they were rounded."""
    step = max(1, _AT_ONCE // prod(stored.shape[1:]))
    for first in range(piece.first, piece.first + piece.rows, step):
        read = stored.rows(first, min(step, piece.first + piece.rows - first)).float()
        whole = normalize_rows(read) if piece.unit else read
        yield whole.to(DTYPES[piece.dtype]).float()

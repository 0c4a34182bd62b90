"""``config.json``, read key by key: what a model's shape follows from, and nothing by a guess."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from bc2.errors import DataError
from bc2.model.model_config import ModelConfig
from bc2.model.rope_scaling import RopeScaling

T = TypeVar("T", int, float, bool, str)

#: Keys that say nothing about what the model computes.
_OF_NO_SHAPE = {
    "_name_or_path", "architectures", "attention_dropout", "auto_map", "bos_token_id", "dtype",
    "eos_token_id", "gradient_checkpointing", "hidden_dropout", "model_max_length", "model_type",
    "pad_token_id", "pretraining_tp", "quantization_config", "resid_pdrop", "tokenizer_class",
    "torch_dtype", "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache",
    "z_loss_weight", "_attn_implementation",
}  # fmt: skip

#: Keys that have one value which bc2 computes.
_ONLY = {
    "hidden_act": "silu", "per_layer_config": None, "transformers_weights": None,
}  # fmt: skip

#: A scaling's keys by bc2's names for them.
_SCALING = {
    "factor": "factor",
    "original_max_position_embeddings": "original_context",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
}

#: Other keys of a scaling that may be there, with the values that change nothing.
_SCALING_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "truncate": (True, None), "partial_rotary_factor": (1.0, None), "mscale": (None,),
    "mscale_all_dim": (None, 0), "finetuned": (True, False, None),
}  # fmt: skip


@dataclass
class HfConfig:
    """A ``config.json`` and which of its keys were read."""

    data: Mapping[str, Any]
    where: str
    """The file."""
    seen: set[str] = field(default_factory=set)

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The value of a key.

        Args:
            default: where there is no such key, or it is null; needed where this is None.

        Raises:
            DataError: the key is missing, or its value is of another type.
        """
        self.seen.add(name)
        value = self.data.get(name)
        if value is None:
            if default is None:
                raise DataError(f"{name} is missing", where=self.where)
            return default
        return self._checked(name, value, kind)

    def _checked(self, name: str, value: Any, kind: type[T]) -> T:
        if kind is float and type(value) is int:
            with suppress(OverflowError):
                value = float(value)
        if type(value) is not kind:
            raise DataError(f"{name} is {value!r}, no {kind.__name__}", where=self.where)
        return value

    def optional(self, name: str, kind: type[T], missing: T | None = None) -> T | None:
        """The value of a key; None where it is null, and `missing` where there is none."""
        self.seen.add(name)
        if name not in self.data:
            return missing
        return None if self.data[name] is None else self.get(name, kind)

    def must_be(self, name: str, right: Any, *, null: bool = True) -> None:
        """Read a key that has one value that bc2 knows, which is also its value if it is missing.

        Args:
            null: whether null is as good as missing.

        Raises:
            DataError: it has another one.
        """
        self.seen.add(name)
        value = self.data.get(name, right)
        if value != right and not (null and value is None):
            raise DataError(
                f"{name} = {value!r} is not supported, only {right!r}", where=self.where
            )

    def unread(self) -> dict[str, Any]:
        """Keys that were not read and may mean something: those that say nothing are left out."""
        return {
            name: value
            for name, value in self.data.items()
            if name not in self.seen | _OF_NO_SHAPE and value not in (None, False)
        }

    # -- what families share

    def sizes(self) -> dict[str, Any]:
        """The sizes that every family names alike, as settings of `ModelConfig`."""
        for name, right in _ONLY.items():
            self.must_be(name, right)
        self.must_be("is_causal", True, null=False)  # null is false to transformers
        return {
            "vocab_size": self.get("vocab_size", int),
            "hidden_size": self.get("hidden_size", int),
            "intermediate_size": self.get("intermediate_size", int),
            "num_layers": self.get("num_hidden_layers", int),
            "num_heads": self.get("num_attention_heads", int),
            "norm_eps": self.get("rms_norm_eps", float),
            "initializer_range": self.get("initializer_range", float, 0.02),
        }

    def rotary(self, base: float | None) -> dict[str, Any]:
        """Base and scaling of RoPE, in the spelling of transformers 5 or of the one before.

        Args:
            base: where none is said; None: one must be.

        Raises:
            DataError: the two spellings differ, or a scaling is not supported.
        """
        self.must_be("partial_rotary_factor", 1.0)
        self.seen |= {"rope_parameters", "rope_scaling"}
        new, old = (self._table(name) for name in ("rope_parameters", "rope_scaling"))
        flat, inner = self.optional("rope_theta", float), new.pop("rope_theta", None)
        if inner is not None:
            inner = self._checked("rope_theta", inner, float)
        said = {one for one in (flat, inner) if one is not None}
        if len(said) > 1:
            raise DataError(
                f"rope_theta is {flat} and in rope_parameters {inner}", where=self.where
            )
        if new and old and _scaling_of(new, self) != _scaling_of(old, self):
            raise DataError("rope_parameters and rope_scaling differ", where=self.where)
        if not said and base is None:
            raise DataError("rope_theta is missing", where=self.where)
        scaling = _scaling_of(new or old, self)
        self._check_original(scaling)
        return {"rope_base": said.pop() if said else base, "rope_scaling": scaling}

    def _check_original(self, scaling: RopeScaling | None) -> None:
        """Refuse a length beside the scaling that is not the scaling's own.

        Which of them counts depends on the version of transformers.
        """
        beside = self.optional("original_max_position_embeddings", int)
        if beside is None or scaling is None or scaling.kind == "linear":
            return
        if beside != scaling.original_context:
            raise DataError(
                f"original_max_position_embeddings is {beside}, and of RoPE scaling "
                f"{scaling.kind} {scaling.original_context}",
                where=self.where,
                todo="write the one that the model was trained with into the scaling alone",
            )

    def _table(self, name: str) -> dict[str, Any]:
        value = self.data.get(name) or {}
        if not isinstance(value, dict):
            raise DataError(f"{name} is no object", where=self.where)
        if any(isinstance(one, dict) for one in value.values()):
            raise DataError(f"{name} differs between layers: not supported", where=self.where)
        return dict(value)

    def model(self, **settings: Any) -> ModelConfig:
        """The model of these settings.

        Raises:
            DataError: they contradict each other.
        """
        if self._classifies():
            settings["head"] = "scalar"
        try:
            return ModelConfig(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            raise DataError(f"{place}: {message}".removeprefix(": "), where=self.where) from None

    def _classifies(self) -> bool:
        """Whether the model is a sequence classifier, of the one label that is a score.

        Raises:
            DataError: it has other labels.
        """
        (name,) = self.data["architectures"]
        if not str(name).endswith("ForSequenceClassification"):
            return False
        self.seen |= {"num_labels", "id2label", "label2id", "problem_type"}
        labels = self.data.get("num_labels", len(self.data.get("id2label") or "ab"))
        if labels != 1:
            raise DataError(
                f"a classifier of {labels} labels, where one that scores has one",
                where=self.where,
                todo="import a reward model, whose only label is its score",
            )
        return True


def _scaling_of(table: Mapping[str, Any], config: HfConfig) -> RopeScaling | None:
    """Raises: DataError: a kind or a setting of it is not supported; it is named."""
    kind = table.get("rope_type", table.get("type", "default"))
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise DataError(
            f"RoPE scaling {kind!r} is not supported, only linear, llama3 and yarn",
            where=config.where,
        )
    rest = {name: one for name, one in table.items() if name not in ("rope_type", "type")}
    settings = {_SCALING[name]: one for name, one in rest.items() if name in _SCALING}
    for name, value in rest.items():
        if name not in _SCALING and value not in _SCALING_NEUTRAL.get(name, ()):
            raise DataError(
                f"{name} = {value!r} of RoPE scaling {kind} is not supported", where=config.where
            )
    if kind == "default":
        return None
    if kind == "linear":
        settings.pop("original_context", None)
    elif kind == "yarn" and settings.get("original_context") is None:
        # As transformers does.
        settings["original_context"] = config.get("max_position_embeddings", int)
    try:
        return RopeScaling(kind=kind, **settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"RoPE scaling: {place}: {first['msg']}", where=config.where) from None

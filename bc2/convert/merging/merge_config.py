"""The section [merge]: which models become one, and how. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bc2.recipe import UNKEYED, Section, Settings

Method = Literal["linear", "task-arithmetic", "ties", "slerp", "model-stock"]

#: Methods of what was added to one base.
OF_TASK_VECTORS = ("task-arithmetic", "ties", "model-stock")

#: The methods that a setting is for, where it is not for all.
_FOR = {
    "base": OF_TASK_VECTORS,
    "normalise": ("linear",),
    "scale": ("task-arithmetic", "ties"),
    "density": ("ties",),
    "trim": ("ties",),
    "t": ("slerp",),
}
_FOR_MODELS = {"weight": ("linear", "task-arithmetic", "ties"), "density": ("ties",)}

#: How far from 1 weights may sum that are said to sum to 1: a third has six digits.
_OFF = 1e-5


class MergedModel(Settings):
    """One of the models that are merged."""

    ref: str = Field(min_length=1, json_schema_extra=UNKEYED)
    """The ref of a checkpoint that is a whole model. Its digest is in the key."""
    weight: float | None = Field(None, ge=-1000, le=1000)
    """How much of it. None: 1 / N in linear, and 1 in task-arithmetic and ties."""
    density: float | None = Field(None, gt=0, le=1)
    """With ties, the share of its task vector that is kept. None: merge.density."""


class MergeConfig(Section):
    """[merge]: models of one shape, one tokenizer and one base, made one."""

    section: ClassVar[str] = "merge"

    method: Method
    """linear (arXiv 2203.05482), task-arithmetic (2212.04089), ties (2306.01708), slerp
    (Shoemake 1985) or model-stock (2403.19522)."""
    models: tuple[MergedModel, ...] = Field(min_length=1)
    """What is merged; slerp goes from the first to the second."""
    base: str | None = Field(None, min_length=1, json_schema_extra=UNKEYED)
    """The ref of the model that all were trained from, for methods of task vectors."""
    t: float | None = Field(None, ge=0, le=1)
    """With slerp, how far to go: 0 is the first model, 1 the second."""
    normalise: bool = False
    """With linear, whether weights are divided by their sum, which has to be 1 else."""
    scale: float = Field(1.0, ge=-1000, le=1000)
    """With task-arithmetic and ties, λ: what the merged task vector is multiplied with."""
    density: float = Field(0.2, gt=0, le=1)
    """With ties, the share of each task vector that is kept: the paper's k, 20%."""
    trim: Literal["model", "tensor"] = "model"
    """With ties, of what that share is: of the whole model, as in the paper, or of each tensor."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the merged weights are stored in. bf16 rounds away what is small beside a weight."""
    speech: str | None = Field(None, min_length=1, json_schema_extra=UNKEYED)
    """Which of the models, by its `ref`, gives chat layout and settings of generation; needed
    where they differ. What they are is in the key."""
    same_base: bool = Field(False, json_schema_extra=UNKEYED)
    """Your word that imported models have one base, which their lineage does not say."""

    @model_validator(mode="after")
    def _settings_are_those_of_the_method(self) -> Self:
        for name, methods in _FOR.items():
            if name in self.model_fields_set and self.method not in methods:
                raise ValueError(f"{name} is for {' and '.join(methods)}, not {self.method}")
        for name, methods in _FOR_MODELS.items():
            given = any(getattr(model, name) is not None for model in self.models)
            if given and self.method not in methods:
                raise ValueError(
                    f"{name} of a model is for {' and '.join(methods)}, not {self.method}"
                )
        if self.base is None and self.method in OF_TASK_VECTORS:
            raise ValueError(f"{self.method} needs base, the model that all were trained from")
        if self.t is None and self.method == "slerp":
            raise ValueError("slerp needs t, from 0, the first model, to 1, the second")
        return self

    @model_validator(mode="after")
    def _there_are_enough_models(self) -> Self:
        count = len(self.models)
        if self.method == "slerp" and count != 2:
            raise ValueError(f"models: slerp is between 2, not {count}")
        if count == 1 and self.method != "task-arithmetic":
            raise ValueError(f"models: there is one, and {self.method} merges 2 or more")
        refs = [model.ref for model in self.models]
        twice = next((ref for ref in refs if refs.count(ref) > 1), None)
        if twice is not None:
            raise ValueError(f"models: ref {twice!r} is there twice; give it more weight instead")
        if self.speech is not None and self.speech not in refs:
            raise ValueError(f"speech: {self.speech!r} is none of the models: {', '.join(refs)}")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        given = [model.weight for model in self.models if model.weight is not None]
        if self.method == "linear" and given:
            self._check_sum(given)
        if self.method == "ties" and given and min(given) <= 0:
            raise ValueError("with ties every weight is more than 0: its votes have no other sign")
        return self

    def _check_sum(self, given: list[float]) -> None:
        if len(given) < len(self.models):
            raise ValueError("weight: some models have one; give it for all, or for none")
        total = sum(given)
        if self.normalise and total < _OFF:
            raise ValueError(f"the weights sum to {total:g}: no division makes that 1")
        if not self.normalise and abs(total - 1) > _OFF:
            raise ValueError(f"the weights sum to {total:g}, not 1; or set normalise = true")

    @property
    def weights(self) -> tuple[float, ...]:
        """Of each model, those filled in that are left out."""
        default = 1 / len(self.models) if self.method == "linear" else 1.0
        found = [default if model.weight is None else model.weight for model in self.models]
        total = sum(found) if self.normalise else 1.0
        return tuple(weight / total for weight in found)

    @property
    def densities(self) -> tuple[float, ...]:
        """Of each model's task vector, the share that is kept."""
        return tuple(
            self.density if model.density is None else model.density for model in self.models
        )

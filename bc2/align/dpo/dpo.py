"""Direct preference optimisation (arXiv 2305.18290): a chat model learns from pairs of answers.

Baichuan 2 §4 trains for safety by it, before reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.align.dpo.dpo_config import DpoConfig
from bc2.align.dpo.dpo_metrics import DPO_METRICS
from bc2.align.pairs.preference_config import PAIRS
from bc2.align.pairs.preference_models import trained_role, write_beside
from bc2.model.model_config import ModelConfig, check_language_head
from bc2.pipeline.stage import Input
from bc2.recipe import Recipe
from bc2.registry import Registry, Role
from bc2.train.algorithm import INIT, Algorithm, ModelRole, Training
from bc2.train.run_config import RunConfig

if TYPE_CHECKING:
    import numpy as np

    from bc2.align.dpo.heldout_preferences import HeldoutPreferences
    from bc2.align.pairs.packed_pairs import PackedPairs
    from bc2.data.loader import Batch
    from bc2.parallel.mesh import Mesh
    from bc2.train.guard import Guard
    from bc2.train.models import Models
    from bc2.train.objective import Objective
    from bc2.train.run import Run
    from bc2.train.stream import BatchStream
    from bc2.train.training_settings import TrainingSettings


class DirectPreferenceOptimisation(Algorithm):
    """One model, pairs packed into rows, a loss a pair of log-ratios to a reference."""

    section = DpoConfig
    version = 1
    role = "chat"
    metrics = DPO_METRICS
    divisor = PAIRS
    inputs = (
        Input("pairs", lambda settings: settings.training.pairs),  # type: ignore[attr-defined]
        Input(
            "checkpoint", lambda settings: settings.training.reference,  # type: ignore[attr-defined]
            name="reference", optional=True,
        ),
    )  # fmt: skip

    def models(self, settings: TrainingSettings) -> tuple[ModelRole, ...]:
        return (trained_role(settings),)

    def check(self, recipe: Recipe) -> None:
        if recipe.has(DpoConfig) and recipe.has(ModelConfig):
            check_language_head(recipe, "direct preference optimisation")

    def checkpoint_role(self, config: RunConfig) -> Role:
        assert isinstance(config, DpoConfig)
        return "chat" if config.lora is None else "adapter"

    def write_beside(self, run: Run, folder: Path) -> None:
        write_beside(run, folder)

    def shortened(self, config: RunConfig, steps: int) -> dict[str, Any]:
        assert isinstance(config, DpoConfig)
        return {
            "eval_pairs": min(config.eval_pairs, 16),
            "sample_prompts": min(config.sample_prompts, 1),
            "sample_tokens": min(config.sample_tokens, 8),
        }

    def objective(self, role: str, config: RunConfig, models: Models) -> Objective:
        from bc2.align.dpo.dpo_objective import PreferredAnswers

        assert isinstance(config, DpoConfig)
        return PreferredAnswers(config)

    def example(
        self, settings: TrainingSettings, sequences: int, rng: np.random.Generator
    ) -> Batch:
        from bc2.align.dpo.dpo_objective import REFERENCE
        from bc2.align.pairs.example_pairs import example_pairs

        assert isinstance(settings.training, DpoConfig)
        stored = {} if settings.training.adapter_off else {REFERENCE: float}
        return example_pairs(
            settings.model.vocab_size, settings.training, sequences, rng, ends=False, fields=stored
        )

    def open(self, run: Run) -> DpoRun:
        return DpoRun(run)


class DpoRun(Training):
    """The pairs of a run and the reference's log-probabilities of them."""

    rows: PackedPairs
    """With the reference's log-probabilities, when `prepare` has run."""
    heldout: PackedPairs | None

    def __init__(self, run: Run):
        from bc2.align.dpo.own_answers import OwnAnswers
        from bc2.align.dpo.reference import check_reference, reference_of
        from bc2.align.pairs.pair_inputs import open_pair_inputs
        from bc2.align.samples.speech import check_speaks
        from bc2.align.samples.written_answers import AnswerWriter
        from bc2.model.saved_adapter import holds_adapters

        assert isinstance(run.config, DpoConfig)
        base = run.inputs.one(INIT.name)
        check_speaks(base, f"{run.config.section}.{INIT.name}")
        self.config = run.config
        self.data = open_pair_inputs(run, ends=False)
        self.rows, self.heldout = self.data.rows, self.data.heldout
        chat = self.data.source.chat()
        check_reference(run, chat)
        #: Adapters that are trained on do not leave the reference when they are switched off.
        self.stored = not run.config.adapter_off or holds_adapters(base)
        self.same = reference_of(run).digest == base.digest
        self.schedule, self.tokenizer = self.data.schedule, self.data.source.tokenizer
        asked = self.data.prompts(run.config.sample_prompts)
        self.answers = OwnAnswers(
            AnswerWriter(asked, chat, run.model.context_length, run.config.sample_tokens)
        )

    def check_registered(self, run: Run, registry: Registry) -> None:
        from bc2.align.dpo.reference import check_same_base
        from bc2.align.dpo.reference_logprobs import find_logprobs

        if self.stored:
            check_same_base(run, registry)
            find_logprobs(run, self.data, registry)

    def prepare(self, run: Run, registry: Registry, mesh: Mesh) -> None:
        from bc2.align.dpo.dpo_objective import REFERENCE
        from bc2.align.dpo.reference_logprobs import obtain_logprobs

        if not self.stored:
            return
        found = obtain_logprobs(run, self.data, registry, mesh)
        fields = {REFERENCE: found.of_pairs("train", self.rows.pairs)}
        self.rows = replace(self.rows, fields=fields)
        if self.heldout is not None:
            fields = {REFERENCE: found.of_pairs("heldout", self.heldout.pairs)}
            self.heldout = replace(self.heldout, fields=fields)

    def check_begin(self, config: RunConfig, models: Models, check: Callable[[], None]) -> None:
        import torch

        from bc2.align.dpo.gate import check_log_ratios
        from bc2.train.device import pick_precision

        precision = pick_precision(config.precision, torch.device(config.device))
        check_log_ratios(
            models.product, self.rows, config.micro_sequences, precision, same=self.same
        )
        if self.heldout is not None:
            self.answers.first_tokens = self.answers(models.product, check).mean_tokens

    def stream(self, config: RunConfig, models: Models, check: Callable[[], None]) -> BatchStream:
        from bc2.align.dpo.dpo_stream import DpoStream

        assert isinstance(config, DpoConfig)
        data = self.data
        rows = DpoStream.of(self.rows, config, data.total_rows, data.sources, models.mesh, check)
        return replace(rows, answers=self.answers)

    def guard(self) -> Guard[Any]:
        from bc2.train.loss_guard import LossGuard

        return LossGuard(self.config.guard, DPO_METRICS.guarded)

    def evaluator(
        self, config: RunConfig, models: Models, check: Callable[[], None]
    ) -> HeldoutPreferences | None:
        from bc2.align.dpo.heldout_preferences import HeldoutPreferences

        assert isinstance(config, DpoConfig)
        if self.heldout is None:
            return None
        return HeldoutPreferences(
            models.product, self.heldout, self.data.sources, config, self.answers, check
        )

    def alike(self) -> Mapping[str, Any]:
        return self.data.alike()

    def extent(self) -> str:
        return self.data.extent(self.config)

    def announcements(self) -> Sequence[str]:
        reference = "its stored log-probabilities" if self.stored else "the model without adapters"
        return [*self.data.lines, f"the reference is {reference}"]


DPO = DirectPreferenceOptimisation()

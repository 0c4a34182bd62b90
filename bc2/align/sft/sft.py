"""Supervised fine-tuning: a base model becomes a chat model (Baichuan 2 §3.1; Alignment report)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.align.sft.sft_config import SftConfig
from bc2.align.sft.sft_metrics import SFT_METRICS
from bc2.model.model_config import ModelConfig, check_language_head
from bc2.pipeline.stage import Input
from bc2.recipe import Recipe
from bc2.registry import Role
from bc2.train.algorithm import INIT, Algorithm, ModelRole, Training
from bc2.train.run_config import RunConfig

if TYPE_CHECKING:
    import numpy as np

    from bc2.align.samples.row_stream import RowStream
    from bc2.align.sft.heldout_answers import HeldoutAnswers
    from bc2.data.loader import Batch
    from bc2.train.guard import Guard
    from bc2.train.models import Models
    from bc2.train.objective import Objective
    from bc2.train.run import Run
    from bc2.train.training_settings import TrainingSettings


class SupervisedFineTuning(Algorithm):
    """One model, the answers of conversations packed into rows, a loss in nats a trained token."""

    section = SftConfig
    version = 1
    role = "chat"
    metrics = SFT_METRICS
    divisor = "weight"
    inputs = (Input("chats", lambda settings: settings.training.chats),)  # type: ignore[attr-defined]

    def models(self, settings: TrainingSettings) -> tuple[ModelRole, ...]:
        assert isinstance(settings.training, SftConfig)
        lora = settings.training.lora
        if lora is None:
            return (ModelRole("model", settings.model),)
        from bc2.model.adapters import is_adapters
        from bc2.model.lora import add_lora

        return (
            ModelRole(
                "model", settings.model, trainable=is_adapters, adapters=add_lora(lora), alone=True
            ),
        )

    def check(self, recipe: Recipe) -> None:
        if recipe.has(SftConfig) and recipe.has(ModelConfig):
            check_language_head(recipe, "supervised fine-tuning")

    def checkpoint_role(self, config: RunConfig) -> Role:
        assert isinstance(config, SftConfig)
        return "chat" if config.lora is None else "adapter"

    def write_beside(self, run: Run, folder: Path) -> None:
        from bc2.align.samples.speech import write_speech

        assert isinstance(run.config, SftConfig)
        write_speech(run, folder, run.config.chat_layout)
        if run.config.lora is not None:
            from bc2.model.saved_adapter import write_adapter

            write_adapter(folder, run.config.lora, run.inputs.one(INIT.name))

    def shortened(self, config: RunConfig, steps: int) -> dict[str, Any]:
        assert isinstance(config, SftConfig)
        return {
            "eval_samples": min(config.eval_samples, 16),
            "sample_prompts": min(config.sample_prompts, 1),
            "sample_tokens": min(config.sample_tokens, 8),
        }

    def objective(self, role: str, config: RunConfig, models: Models) -> Objective:
        from bc2.align.sft.sft_objective import Answers

        return Answers()

    def example(
        self, settings: TrainingSettings, sequences: int, rng: np.random.Generator
    ) -> Batch:
        from bc2.align.sft.packed_conversations import example_batch

        assert isinstance(settings.training, SftConfig)
        return example_batch(settings.model.vocab_size, settings.training, sequences, rng)

    def open(self, run: Run) -> SftRun:
        return SftRun(run)


class SftRun(Training):
    """The conversations of a run as samples, and what is read of them."""

    def __init__(self, run: Run):
        from bc2.align.sft.sft_inputs import open_sft_inputs

        assert isinstance(run.config, SftConfig)
        self.config, self.room = run.config, run.model.context_length
        self.data = open_sft_inputs(run)
        self.schedule, self.tokenizer = self.data.schedule, self.data.source.tokenizer

    def stream(self, config: RunConfig, models: Models, check: Callable[[], None]) -> RowStream:
        from bc2.align.samples.row_stream import RowStream

        assert isinstance(config, SftConfig)
        data = self.data
        return RowStream.of(data.rows, config, data.total_rows, data.sources, models.mesh, check)

    def guard(self) -> Guard[Any]:
        from bc2.train.loss_guard import LossGuard

        return LossGuard(self.config.guard, SFT_METRICS.guarded)

    def evaluator(
        self, config: RunConfig, models: Models, check: Callable[[], None]
    ) -> HeldoutAnswers | None:
        from bc2.align.samples.written_answers import AnswerWriter
        from bc2.align.sft.heldout_answers import HeldoutAnswers

        assert isinstance(config, SftConfig)
        if self.data.heldout is None:
            return None
        return HeldoutAnswers(
            models.product,
            self.data.heldout,
            config.micro_sequences,
            AnswerWriter(
                self.data.prompts(config.sample_prompts),
                self.data.source.chat(),
                self.room,
                config.sample_tokens,
            ),
            timeout_s=config.data_timeout_s,
            check=check,
        )

    def alike(self) -> Mapping[str, Any]:
        heldout = self.data.heldout
        return {
            "samples": dict(self.data.rows.samples.crc32),
            "held-out samples": None if heldout is None else dict(heldout.samples.crc32),
        }

    def extent(self) -> str:
        return self.data.extent(self.config)

    def announcements(self) -> Sequence[str]:
        return self.data.lines


SFT = SupervisedFineTuning()

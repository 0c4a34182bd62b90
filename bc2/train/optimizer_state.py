"""The state that an update rule keeps of each parameter. Imports neither torch nor pydantic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig

#: AdamW's first and second moment, as torch and checkpoints name them.
MOMENTS = ("exp_avg", "exp_avg_sq")

#: DeepSpeed's settings for the optimizer that it is given: it is used as it is, also with
#: offloaded states, and clips by itself.
DEEPSPEED_SETTINGS: dict[str, Any] = {
    "gradient_clipping": 0.0,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


class AdamWState:
    """AdamW's state: that of `bc2.train.optimizer_config.AdamWConfig`."""

    def state_names(self, name: str, shape: Sequence[int]) -> tuple[str, ...]:
        """The fp32 tensors of a parameter's shape that its updates need.

        Args:
            name: of the parameter.
            shape: of the whole parameter.
        """
        return MOMENTS

    def state_bytes(self, model: ModelConfig) -> float:
        """Bytes of those tensors for each parameter of a model, on average."""
        return 4.0 * len(MOMENTS)

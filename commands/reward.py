"""`bc2 reward RECIPE`: from a chat model and pairs of answers to a registered reward model."""

from __future__ import annotations

from bc2.launch.training_verb import TrainingRequest, run_training, training_options
from bc2.options import verb

app = verb()


@app.command()
@training_options("reward")
def reward(request: TrainingRequest) -> None:
    """Train a reward model on pairs of answers, building those it needs.

    Every pair is checked first; `bc2 data lint` shows what is found. With [reward.lora] adapters
    are trained and registered with the head. A run that died goes on from its last complete
    checkpoint by itself; a finished one is found and not trained again.
    """
    run_training(request)

"""`bc2 dpo RECIPE`: a chat model learns from pairs of answers which it should prefer."""

from __future__ import annotations

from bc2.launch.training_verb import TrainingRequest, run_training, training_options
from bc2.options import verb

app = verb()


@app.command()
@training_options("dpo")
def dpo(request: TrainingRequest) -> None:
    """Train a chat model on pairs of answers, building those it needs.

    Log-probabilities of the reference are computed once and registered; other runs with the same
    pairs and reference find them. With [dpo.lora] adapters are trained, and the model without them
    is the reference. A run that died goes on from its last complete checkpoint by itself; a
    finished one is found and not trained again.
    """
    run_training(request)

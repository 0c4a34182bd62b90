"""`bc2 sft RECIPE`: from a base model and conversations to a registered chat model."""

from __future__ import annotations

from bc2.launch.training_verb import TrainingRequest, run_training, training_options
from bc2.options import verb

app = verb()


@app.command()
@training_options("sft")
def sft(request: TrainingRequest) -> None:
    """Fine-tune a model on conversations, building those it needs.

    Every conversation is checked first; `bc2 data lint` shows what is found. With [sft.lora]
    adapters are trained and registered beside the model. A run that died goes on from its last
    complete checkpoint by itself; a finished one is found and not trained again.
    """
    run_training(request)

"""`bc2 pretrain RECIPE`: from whatever is there to a registered base model."""

from __future__ import annotations

from bc2.launch.training_verb import TrainingRequest, run_training, training_options
from bc2.options import verb

app = verb()


@app.command()
@training_options("pretrain")
def pretrain(request: TrainingRequest) -> None:
    """Train a base model, building the corpus, tokenizer and token shards it needs.

    A run that died goes on from its last complete checkpoint by itself; a finished one is
    found and not trained again. --fresh trains from the start. --nproc starts ranks that
    share the work as [parallel] says; under torchrun, deepspeed or srun leave it out.
    """
    run_training(request)

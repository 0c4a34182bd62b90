"""What a worker is asked to measure: one contender, ready to run."""

from __future__ import annotations

from typing import Literal

from bc2.errors import UsageError, nearest
from bc2.train.precision import Precision
from bc2.train.training_spec import TrainingSpec

#: How transformers' Llama can be trained: the type of its weights, eager or compiled.
PEERS = (
    "bf16-eager", "bf16-compiled", "autocast-eager", "autocast-compiled",
    "fp32-eager", "fp32-compiled",
)  # fmt: skip

#: The algorithm that peers train too, on the same data; another one's data is made by itself.
PEERS_ALGORITHM = "pretrain"

#: How our model can be run in one process; layouts over ranks come beside it.
OURS = ("eager", "compiled")

Weights = Literal["bf16", "autocast", "fp32"]


class Spec(TrainingSpec):
    """One contender, or the matrix products that give the device's peak."""

    name: str
    """What tables call it."""
    kind: Literal["bc2", "hf", "matmul"]
    """bc2's engine, transformers' Llama, or plain matrix products."""
    shards: str
    """Directory of the token shards that all contenders of pretraining read; checkpoints are saved
    beside it."""
    weights: Weights = "fp32"
    """Of a peer: bf16 weights, bf16 autocast over fp32 weights, or fp32 throughout."""
    ranks: int = 1
    """Of ours: processes that make its steps together."""
    tuned: bool = True
    """Run in bc2's own process environment (sleeping OpenMP threads, allocator settings)."""

    @property
    def reads_shards(self) -> bool:
        """Whether its data is token shards."""
        return self.algorithm == PEERS_ALGORITHM


def default_peers(precision: Precision) -> tuple[str, ...]:
    """The ways of the peer that compute in a precision."""
    if precision == "fp32":
        return PEERS[4:]
    return PEERS[:4]


def parse_names(text: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """A comma-separated choice, in the order given and without repetitions.

    Raises:
        UsageError: an unknown name, or none.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in known:
            guess = nearest(name, known)
            raise UsageError(
                f"{option} does not know {name!r}",
                todo=f"did you mean {guess!r}?" if guess else f"there are: {', '.join(known)}",
            )
    if not names:
        raise UsageError(f"{option} names nothing", todo=f"there are: {', '.join(known)}")
    return names


def parse_sizes(text: str, option: str) -> tuple[int, ...]:
    """Comma-separated integers from 0 on, in the order given and without repetitions."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UsageError(f"{option} cannot read {text!r}", todo="write numbers such as 0,1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))


def weights_of(peer: str) -> Weights:
    """The type of the weights in the name of a peer's way."""
    if peer.startswith("bf16"):
        return "bf16"
    return "autocast" if peer.startswith("autocast") else "fp32"

"""The stages, in their order: correctness first."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

#: Tells a process of a stage when it is killed, on the system's monotonic clock.
ENDS = "BC2_GPU_STAGE_ENDS"


@dataclass(frozen=True)
class Stage:
    """A stage, and the time that it gets."""

    name: str
    what: str
    """In a few words, for the summary."""
    needs_s: float
    """It is started only if so many seconds are left: about what it takes on an H200."""
    limit_s: float
    """It is killed after so many; in a run of more time than `DEADLINES`, after as many more."""
    parts: tuple[str, ...] = ("all",)
    """Processes, one after another."""
    independent: bool = False
    """Whether a part is of use without those before it."""
    module: str = ""
    """`gpu_stages.NAME` if empty."""

    @property
    def runs(self) -> str:
        """The module that its processes run."""
        return self.module or f"gpu_stages.{self.name}"


CORRECTNESS = (
    Stage("env", "versions, and speeds of products and copies", 8, 40),
    Stage("attention", "every backend, ALiBi and the cache against fp64", 15, 80),
    Stage("head", "the head's loss against fp64; waits and launches", 25, 75),
    Stage("parity", "training on this device against the CPU", 10, 45),
    Stage("resume", "4 steps + save + new process + 4 = 8, same bits", 12, 50, ("first", "second")),
    Stage("nccl", "process groups; two processes on one device", 15, 60),
    Stage("zero", "DeepSpeed 1, 2, 3, with and without offload, against local", 25, 90),
    Stage("generate", "the inference engine against the model in fp64", 10, 45),
    Stage("compile", "compiled against eager; graphs settle", 20, 75),
)

SPEED = (
    Stage(
        "bench",
        "ours and transformers' Llama, eager and compiled; a profile",
        90,
        155,
        ("ours-compiled", "ours-eager", "hf-eager", "hf-compiled"),
        independent=True,
    ),
    Stage("memory", "the plan's memory against the peak; micro_batch = auto", 20, 60),
)

GROUPS = {"all": CORRECTNESS + SPEED, "correctness": CORRECTNESS, "speed": SPEED}

#: Seconds that a run gets where `--deadline` is not given.
DEADLINES = {"all": 460.0, "correctness": 280.0, "speed": 180.0}


def choose(text: str) -> tuple[Stage, ...]:
    """The stages of `--stages`, in the order of the table.

    Raises:
        ValueError: there is no such stage or group.
    """
    known = {stage.name: (stage,) for stage in GROUPS["all"]} | GROUPS
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise ValueError(f"--stages has {name!r}, which is no stage{meant}")
    if not names:
        raise ValueError(f"--stages names none; there are {', '.join(known)}")
    wanted = {stage.name for name in names for stage in known[name]}
    return tuple(stage for stage in GROUPS["all"] if stage.name in wanted)

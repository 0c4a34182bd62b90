"""Publishes artifacts one after another, saying each on stdout once it is acknowledged.

Run as a script: worker.py HOME PREFIX COUNT [PARENT]
"""

from __future__ import annotations

import sys
from pathlib import Path

from bc2.registry import Draft, Position, Registry, stage_key


def main() -> None:
    home, prefix, count, *parents = sys.argv[1:]
    registry = Registry.open(Path(home))
    for number in range(int(count)):
        key = stage_key("checkpoint", 1, {"prefix": prefix}, parents)
        position = Position(number, number)
        draft = Draft("checkpoint", prefix, key, tuple(parents), position=position, finished=False)
        with registry.stage(draft) as staged:
            for name in ("weights.bin", "optimizer/state.bin", "optimizer/rng.bin"):
                (staged.path / name).parent.mkdir(exist_ok=True)
                (staged.path / name).write_bytes(f"{prefix} {number} {name}".encode() * 500)
            artifact = staged.publish()
        if number % 3 == 0:
            registry.tag(artifact, f"t{number}")
        print(artifact.digest, flush=True)


if __name__ == "__main__":
    main()

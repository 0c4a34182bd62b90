"""How long a scaling law takes to fit, beside the grid of starts of the published re-estimate.

    python benchmarks/scaling_fit.py FILE.csv [--loss-unit nats] [--where 'COLUMN OP VALUE']

The grid is that of Besiroglu et al. 2024 (arXiv 2404.10102): 4,500 starts of BFGS on the sum of
Huber losses, in the coordinates (a, b, e, alpha, beta) of Hoffmann et al. 2022. A part of it is
run, spread over the grid, and its time is scaled up.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import huber, logsumexp

from bc2.scaling.fit import HUBER, fit
from bc2.scaling.forms import FORMS
from bc2.scaling.intervals import Bootstrap
from bc2.scaling.points import Points
from bc2.scaling.points_file import read_points

GRID = list(itertools.product(
    np.arange(0, 30, 5), np.arange(0, 30, 5), np.arange(-1, 1.5, 0.5), np.arange(0, 2.5, 0.5),
    np.arange(0, 2.5, 0.5),
))  # fmt: skip


def grid(points: Points, part: int) -> tuple[float, float]:
    """Seconds of the whole grid, by a part of it, and the best objective of the part."""
    n, d, y = points.logs("params"), points.logs("tokens"), points.log_loss

    def objective(theta: np.ndarray) -> float:
        a, b, e, alpha, beta = theta
        law = logsumexp([a - alpha * n, b - beta * d, np.full(len(n), e)], axis=0)
        return float(huber(HUBER, law - y).sum())

    starts = GRID[:: len(GRID) // part]
    began = time.perf_counter()
    best = min(minimize(objective, start, method="BFGS").fun for start in starts)
    return (time.perf_counter() - began) * len(GRID) / len(starts), best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("points", type=Path)
    parser.add_argument("--loss-unit", default="nats")
    parser.add_argument("--where", action="append", default=[])
    parser.add_argument("--part", type=int, default=90)
    given = parser.parse_args()
    points = read_points(given.points, given.where, given.loss_unit)
    assert len(GRID) == 4500
    times = []
    for _ in range(5):
        began = time.perf_counter()
        found = fit(FORMS["chinchilla"], points)
        times.append(time.perf_counter() - began)
    print(f"fit of {len(points)} points: {np.median(times):.3f} s ({min(times):.3f} to "
          f"{max(times):.3f}), objective {found.objective:.10g}")  # fmt: skip
    began = time.perf_counter()
    Bootstrap.of(found, 1000)
    print(f"1,000 refits: {time.perf_counter() - began:.1f} s")
    seconds, best = grid(points, given.part)
    print(
        f"grid of 4,500 starts: {seconds:.0f} s by {given.part} of them, best objective {best:.10g}"
    )


if __name__ == "__main__":
    main()

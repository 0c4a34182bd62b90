"""Keep what lm-eval and its libraries print off bc2's stderr: bc2 says itself what matters."""

from __future__ import annotations

import logging
from functools import cache

_LOGGERS = ("lm_eval", "datasets", "huggingface_hub", "evaluate")


@cache
def quieten() -> None:
    """Silence the logs and progress bars of lm-eval, datasets and the hub, in this process.

    They warn on every task about what bc2 checks (shots, labels) or does not do (custom data), and
    draw a bar for every subject.
    """
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars

    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]  # huggingface_hub and datasets bring their own
        logger.propagate = False
    datasets.disable_progress_bars()
    disable_progress_bars()

"""`bc2 data prep --dry-run`: run the funnel on the beginning of each source, and keep nothing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from bc2.console import progress
from bc2.data.corpus_config import CorpusConfig
from bc2.data.inputs import describe_inputs
from bc2.data.prep import prepare
from bc2.data.prep.funnel import FUNNEL
from bc2.data.prep.stage_table import build_stages
from bc2.data.prep.step_timings import TIMINGS

#: Bytes of each source that a dry run takes.
SAMPLE_BYTES = 2 << 20


def dry_run(config: CorpusConfig, options: prepare.PrepOptions) -> dict[str, Any]:
    """Run the stages of [corpus] on a sample of its sources.

    Returns:
        The stages, the inputs, and the ``funnel`` and ``timings`` of the sample.
    """
    names = [stage.name for stage in build_stages(config)]
    sample = prepare.sample_of(config, SAMPLE_BYTES)
    with tempfile.TemporaryDirectory(prefix="bc2-dry-run-") as folder:
        work, out = Path(folder) / "work", Path(folder) / "corpus"
        prepare.prepare(sample, out, work=work, options=options, bars=progress)
        timings = json.loads((work / TIMINGS).read_bytes())
        funnel = json.loads((out / FUNNEL).read_bytes())
    return {
        "stages": ", ".join(names),
        **{f"source {name}": found for name, found in describe_inputs(config).items()},
        "sample": f"at most {SAMPLE_BYTES:,} bytes of each source",
        "funnel": funnel,
        "timings": timings,
    }

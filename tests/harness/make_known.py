"""Write bc2/harness/releases/known.json: what the releases in a folder have, by our own readers.

    python tests/harness/make_known.py DIR

Run it where a reader's rows change, and look at what differs.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from bc2.harness.release import SOURCES, open_release
from bc2.harness.releases import known

#: Of each source: what it is, where it lies below DIR ("": anywhere), and what is to be said of it.
RELEASES = {
    "mmlu": [("MMLU's dev and test", "", "")],
    "cmmlu": [("CMMLU 1.0.1", "", "")],
    "ceval": [
        (
            "C-Eval's val in simplified characters, converted back",
            "ceval/val_s_converted",
            "the text was converted automatically from traditional to simplified characters; it "
            "is not C-Eval's own",
        ),
        (
            "C-Eval's val in traditional characters",
            "ceval/val_zhtw",
            "the text was converted to traditional characters; it is not C-Eval's own",
        ),
    ],
    "gsm8k": [("GSM8K of its authors", "", "")],
    "humaneval": [("HumanEval of its authors", "", "")],
    "mbpp": [("MBPP of its authors", "", "")],
    "bbh": [("BIG-Bench Hard of its authors", "", "")],
    "agieval": [("AGIEval 1.0", "", "")],
    "jecqa": [("the JEC-QA files of AGIEval 1.0", "", "")],
    "gaokao": [("GAOKAO-Bench 2010-2022", "", "")],
    "medqa": [("MedQA's test, five options", "", "")],
    "medmcqa": [
        (
            "MedMCQA's validation, its single-choice questions",
            "",
            "2,816 single-choice questions, of the 4,183 of validation",
        )
    ],
}


def entry(source: str, release: str, folder: Path, note: str) -> dict[str, object]:
    """What known.json holds of one release."""
    found = open_release(source, folder)
    datasets = {
        known.dataset_key(*key): {
            **{split: len(rows) for split, rows in splits.items()},
            "digest": known.dataset_digest(splits),
        }
        for key, splits in found.datasets.items()
    }
    said = {"note": note} if note else {}
    return {"release": release, **said, "digest": found.digest, "datasets": datasets}


def main(folder: Path) -> None:
    """Write the file."""
    assert set(RELEASES) == set(SOURCES)
    found = {
        source: [entry(source, name, folder / where, note) for name, where, note in releases]
        for source, releases in RELEASES.items()
    }
    target = Path(known.__file__).with_name("known.json")
    text = json.dumps(found, indent=1, ensure_ascii=False)
    # Each dataset on a line of its own.
    lines = re.sub(r'\{\s+"\w+": \d[^{}]*\}', lambda one: " ".join(one[0].split()), text)
    lines = lines.replace('{ "', '{"').replace('" }', '"}')
    target.write_text(lines + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

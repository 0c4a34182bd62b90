"""Runs `bc2` commands one after another in one process, which saves their imports.

Run as a script: commands_in_turn.py JSON, a list of argument lists. Prints for each a JSON line:
its exit code, stdout and stderr.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from bc2.cli import main


def run(argv: list[str]) -> list[object]:
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(argv)
        except SystemExit as end:
            code = end.code
    return [code, out.getvalue(), err.getvalue()]


if __name__ == "__main__":
    for words in json.loads(sys.argv[1]):
        print(json.dumps(run(words)), flush=True)

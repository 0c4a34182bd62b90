"""`bc2 report` of a real run that was stopped and went on, and what wrong inputs end in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import warmed

LogRun = Callable[..., Path]

BC2 = [sys.executable, "-P", "-m", "bc2"]
PRETRAIN = [
    "pretrain", "small.toml", "--quiet", "--set", "pretrain.length=60 steps",
    "--set", "pretrain.checkpoint_every=10 steps",
]  # fmt: skip


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return warmed.run([*BC2, *args], text=True, capture_output=True, check=False, timeout=120)


def stop_at_step(step: int, home: Path) -> None:
    """Train until a step is made, and stop by SIGTERM."""
    trainer = warmed.Popen([*BC2, *PRETRAIN], stderr=subprocess.PIPE, env=os.environ)
    until = time.monotonic() + 120
    while not any(f'"step": {step},' in log.read_text() for log in home.glob("runs/*/t*.jsonl")):
        assert trainer.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)
    trainer.send_signal(signal.SIGTERM)
    _, err = trainer.communicate(timeout=60)
    assert trainer.returncode == 143, err


class Cells(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "td":
            self.found.append("")

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1] += data


def test_a_run_in_progress_and_the_same_run_finished(small: Path) -> None:
    home = small / "home"
    stop_at_step(12, home)
    first = run("report", "--json")
    assert first.returncode == 0, first.stderr
    written = json.loads(first.stdout)
    assert written["state"] == "stopped"
    assert "last held-out loss" in Path(written["page"]).read_text()
    ref = run(*PRETRAIN).stdout.strip()

    done = run("report", ref, "--quiet")
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.strip())
    assert page == Path(written["page"])
    html = page.read_text()
    assert "final held-out loss" in html
    assert html.count("</svg>") == 2
    assert ">restart<" in html
    cells = [cell.strip() for cell in Cells(html).found]
    assert "stopped (SIGTERM)" in cells
    assert "finished" in cells
    lineage = cells[cells.index("checkpoint/small@60") :]
    assert lineage[1] == ref
    assert "↳ tokens/small" in lineage
    assert "↳ corpus/small" in lineage
    for name in ("loss.svg", "loss.png"):
        assert page.with_name(name).stat().st_size > 1000
    assert not list(page.parent.glob("*.tmp"))


def test_the_page_alone_goes_where_it_is_asked_for(log_run: LogRun, tmp_path: Path) -> None:
    folder = log_run()
    out = tmp_path / "page.html"
    done = run("report", "made", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"page  {out}\n"
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert not (folder / "report.html").exists()
    assert not (folder / "loss.svg").exists()


def test_the_json_has_what_the_run_measured(pair_run: LogRun, tmp_path: Path) -> None:
    pair_run()
    done = run("report", "pairs", "--out", str(tmp_path / "page.html"), "--json")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)["metrics"]
    assert measured == json.loads(run("watch", "pairs", "--json").stdout)["metrics"]
    assert (measured["accuracy"]["value"], measured["accuracy"]["best"]) == (0.75, 0.8)


def test_a_page_is_replaced_whole(log_run: LogRun, tmp_path: Path) -> None:
    log_run()
    out = tmp_path / "page.html"
    out.write_text("old")
    held = out.open()
    assert run("report", "made", "--out", str(out), "--quiet").stdout == f"{out}\n"
    with held:
        assert held.read() == "old", "who has the old page open keeps it"


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["made", "--out", "."], 2, "--out is a directory"),
        (["made", "--out", "nowhere/page.html"], 2, "no such directory for --out"),
        (["mad"], 4, "did you mean 'made'?"),
        (["checkpoint/made"], 4, "no artifact answers to 'checkpoint/made'"),
    ],
)
def test_wrong_inputs(log_run: LogRun, args: list[str], code: int, told: str) -> None:
    folder = log_run()
    before = sorted(folder.iterdir())
    done = run("report", *args)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert told in done.stderr
    assert sorted(folder.iterdir()) == before


def test_without_any_run(log_run: LogRun) -> None:
    done = run("report")
    assert done.returncode == 4
    assert "there is no run" in done.stderr

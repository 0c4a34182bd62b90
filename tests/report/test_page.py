"""A run's page: everything in one file that loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bc2.registry import Artifact, Draft, Position, Registry, queries
from bc2.report.page import MOST_BAD, MOST_SAMPLES, write_report
from bc2.train.logs.runs import RunFolder, mark_running

LogRun = Callable[..., Path]

#: Of a run that `log_run` writes.
KEY = "0123456789ab" + 52 * "c"

NASTY = "<script>alert('x')</script>\u2028</td> & {{ 7 * 7 }}"
VOID = {"meta", "input", "br", "link", "img"}


class Page(HTMLParser):
    """What a test asks of a page: its elements, and the text inside each kind of them."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def count(self, tag: str) -> int:
        return sum(element == tag for element, _ in self.elements)

    def cells(self) -> list[str]:
        return [" ".join(text.split()) for text in self.texts.get("td", [])]


def page_of(folder: Path) -> Page:
    # Without the curves beside it, which take as long as half of the page.
    written = write_report(RunFolder(folder), Registry.open(), folder / "report.html")
    return Page(written.page.read_text(encoding="utf-8"))


def sample(step: int, text: str = "the end", prompt: str = "Once") -> dict[str, Any]:
    return {"event": "sample", "step": step, "tokens": 512 * step, "prompt": prompt, "text": text}


def test_a_page_loads_nothing_and_runs_nothing(log_run: LogRun) -> None:
    folder = log_run(attempts=(0, 15), more=[sample(10), sample(20)], end={"event": "finish"})
    page = page_of(folder)
    assert not page.open, "every element is closed"
    assert page.count("script") == page.count("link") == page.count("img") == 0
    urls = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "srcset", "data")
    ]
    assert urls
    assert all(url and url.startswith("#") for url in urls)
    style = page.texts["style"][0]
    assert "@import" not in style
    assert "url(" not in style
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "http://" not in (folder / "report.html").read_text()


def test_what_a_model_wrote_is_text(log_run: LogRun) -> None:
    page = page_of(log_run(more=[sample(10, NASTY, prompt=NASTY)]))
    assert page.count("script") == 0
    assert " ".join(NASTY.split()) in page.cells()
    assert NASTY in page.texts["pre"]


def test_curves_are_there_over_tokens_and_over_steps(log_run: LogRun) -> None:
    page = page_of(log_run(attempts=(0, 15)))
    assert page.count("svg") == 2
    labels = "".join(page.texts["svg"])
    for label in ("tokens (thousands)", "steps", "held-out", "restart", "tokens/s", "MFU (%)"):
        assert label in labels, label
    radios = [a for tag, a in page.elements if tag == "input"]
    assert [radio["id"] for radio in radios] == ["over-tokens", "over-steps"]


def test_samples_by_prompt_in_their_order_and_not_too_many(log_run: LogRun) -> None:
    rows = [sample(at, f"text {at} of {p}", prompt=p) for at in range(1, 91) for p in ("A", "B")]
    cells = page_of(log_run(steps=90, total=90, more=rows)).cells()
    for prompt in ("A", "B"):
        shown = [cell for cell in cells if cell.endswith(f"of {prompt}")]
        assert len(shown) == MOST_SAMPLES
        assert (shown[0], shown[-1]) == (f"text 1 of {prompt}", f"text 90 of {prompt}")


def test_bad_steps_with_their_samples_and_what_was_done(log_run: LogRun) -> None:
    facts = {"sources": {"docs": 6, "code": 2}, "reason": "loss is nan"}
    skip = {"event": "skip", "step": 12, "tokens": 6144, "samples": [88, 95], **facts}
    folder = log_run(more=[skip])
    bad = [
        {"event": "bad", "time": 0.0, "step": 12, "samples": [88, 95], **facts},
        {"event": "bad", "time": 0.0, "step": 41, "samples": [320, 327], **facts},
    ]
    append(folder, bad)
    cells = page_of(folder).cells()
    at = cells.index("88 to 95")
    assert cells[at - 1 : at + 4] == ["12", "88 to 95", "docs 6, code 2", "loss is nan", "skipped"]
    at = cells.index("320 to 327")
    assert cells[at + 3] == "not in the run's history yet"


def append(folder: Path, rows: list[dict[str, Any]]) -> None:
    import json

    with (folder / "timing.jsonl").open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def test_of_very_many_bad_steps_the_last_are_listed(log_run: LogRun) -> None:
    folder = log_run()
    append(
        folder,
        [
            {"event": "bad", "time": 0.0, "step": n, "samples": [n, n], "reason": "spike"}
            for n in range(MOST_BAD + 5)
        ],
    )
    page = page_of(folder)
    assert page.cells().count("spike") == MOST_BAD
    assert "5 earlier ones are in timing.jsonl." in page.texts["p"]


def test_attempts_settings_and_summary(log_run: LogRun) -> None:
    page = page_of(log_run(attempts=(0, 15), end={"event": "stop", "signal": 15}))
    cells = page.cells()
    assert "stopped (SIGTERM)" in cells
    assert "died (killed, or crashed)" in cells
    assert "32" in cells, "model.hidden_size"
    for value in ("6.0000", "3.0000", "4.1000", "20,480", "40", "512", "25.0%", "1"):
        assert value in page.texts["b"], value


def publish(registry: Registry, key: str, step: int, *, finished: bool) -> Artifact:
    draft = Draft("checkpoint", "made", key, position=Position(step, step), finished=finished)
    with registry.stage(draft) as staged:
        (staged.path / "data.bin").write_bytes(f"{key}{step}".encode())
        return staged.publish()


def test_the_lineage_is_of_the_finished_checkpoint_and_no_other_run_is_read(
    log_run: LogRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, registry = log_run(), Registry.open()
    others = [publish(registry, f"{n:064x}", 90, finished=True) for n in range(3)]
    own = [publish(registry, KEY, step, finished=step == 40) for step in (40, 20, 50)]
    read: set[str] = set()
    select = queries.select

    def watched(*given: Any, **named: Any) -> list[Artifact]:
        found = select(*given, **named)
        read.update(artifact.digest for artifact in found)
        return found

    monkeypatch.setattr(queries, "select", watched)
    assert "checkpoint/made@40" in page_of(folder).cells()
    assert {artifact.digest for artifact in own} <= read
    assert not read & {artifact.digest for artifact in others}
    registry.remove(own[0])
    assert "checkpoint/made@50" in page_of(folder).cells()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_with_hardly_anything(log_run: LogRun, steps: int) -> None:
    page = page_of(log_run(steps=steps, evals=0))
    assert page.count("svg") == 2 * steps
    assert ("No step was logged yet." in page.texts["p"]) == (steps == 0)


def test_a_long_run_makes_a_small_page(log_run: LogRun) -> None:
    folder = log_run(steps=20_000, total=20_000, attempts=range(0, 20_000, 1000))
    size = write_report(RunFolder(folder), Registry.open()).page.stat().st_size
    assert size < 1_500_000


@pytest.mark.parametrize(("share", "shown"), [(0.25, "25.0%"), (1.3, "130.0%")])
def test_an_mfu_above_100_percent_comes_with_the_words_that_it_cannot_be(
    log_run: LogRun, share: float, shown: str
) -> None:
    folder = log_run(steps=4)
    timing = (folder / "timing.jsonl").read_text()
    (folder / "timing.jsonl").write_text(timing.replace('"mfu": 0.25', f'"mfu": {share}'))
    html = write_report(RunFolder(folder), Registry.open()).page.read_text(encoding="utf-8")
    assert shown in html
    said = "median of steps; cannot be: the peak was measured too low"
    assert (said in html) == (share > 1)


def test_a_run_that_goes_on_tells_the_time_left(log_run: LogRun) -> None:
    folder = log_run(steps=20, total=40)
    text = lambda: (folder / "report.html").read_text(encoding="utf-8")  # noqa: E731
    page_of(folder)
    assert "time left" not in text(), "nobody works on it"
    with mark_running(folder):
        page_of(folder)
    assert "time left" in text()


def test_the_tiles_of_another_algorithm(pair_run: LogRun) -> None:
    page = page_of(pair_run())
    # The state's, and then two for each tile: its label and its note.
    figures, (_, *spans) = page.texts["b"], page.texts["span"]
    tiles = dict(zip(spans[: 2 * len(figures) : 2], figures, strict=True))
    assert [*tiles.items()][:7] == [
        ("last held-out accuracy", "0.7500"),
        ("held-out pair loss", "0.3750"),
        ("last training margin", "1.4000"),
        ("last pair loss", "0.3000"),
        ("last KL to the reference", "4.000e-05"),
        ("last chosen reward", "1.0000"),
        ("last answer length", "17.5000"),
    ]
    assert tiles["tokens a step"] == "420"
    for note in ("best 0.8000", "best 0.3500, nats per pair", "computed; 401 to 440"):
        assert note in spans, note
    labels = "".join(page.texts["svg"])
    for label in ("margin", "held-out accuracy", "critic"):
        assert label in labels, label

"""A hundred clients, a third of which hang up at random moments: nothing is lost, nobody waits.

``make test`` runs it for `SECONDS`, ``make test-slow`` for ten minutes. The short one has about a
thousand requests and five hundred hang-ups, the cache full all the time, so that a block lost in
one of a hundred hang-ups is seen; what only the long one can see is memory that grows slowly.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import made_checkpoints
import psutil
import pytest
import serve_load.probe
from serve_load.http_client import HangUp, Reply, ask
from served_process import Served, serve_process

CLIENTS = 100
SECONDS, LONG = 15.0, 600.0

#: Small enough that sequences must give their blocks back, and read their texts again.
CACHE = "300KB"

POSTS = ("/v1/completions", "/v1/chat/completions")

Asked = tuple[str, dict[str, Any]]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    layout = {"chat.json": b'{"layout": "baichuan"}'}
    made_checkpoints.register(tmp_path, "plain", made_checkpoints.drawn(window=256))
    model = made_checkpoints.drawn(seed=2, window=256)
    made_checkpoints.register(tmp_path, "chatty", model, role="chat", files=layout)
    with serve_process(tmp_path, "plain", "chatty", "--cache-memory", CACHE) as served:
        yield served


def requests() -> list[Asked]:
    """Greedy ones of all kinds."""
    draw, found = Random(7), []
    for number in range(24):
        words = " ".join(draw.choice(["答案是", "Answer:", "12", "check", "A"]) for _ in range(25))
        asked = {
            "temperature": 0, "ignore_eos": True, "stream": number % 2 == 0,
            "max_tokens": draw.randint(8, 96), "n": 1 + (number % 5 == 0),
        }  # fmt: skip
        if number % 3 == 0:
            messages = [{"role": "user", "content": words}]
            found.append((POSTS[1], {"model": "chatty", "messages": messages, **asked}))
        elif number % 3 == 1:
            found.append((POSTS[0], {"model": "plain", "prompt": words, **asked}))
        else:
            more = {"echo": True, "logprobs": 1, "max_tokens": 4}
            found.append((POSTS[0], {"model": "plain", "prompt": words, **asked, **more}))
    return found


def answer(reply: Reply) -> dict[int, str]:
    """The texts of an answer, with how each ended."""
    assert reply.status == 200, reply.body
    assert reply.whole
    found: dict[int, str] = {}
    for part in reply.chunks or [reply.json]:
        for choice in part["choices"]:
            said = choice.get("message") or choice.get("delta") or choice
            text = said.get("text") or said.get("content") or ""
            end = choice["finish_reason"]
            known = found.get(choice["index"], "")
            found[choice["index"]] = known + text + (f" ({end})" if end else "")
    return found


def moment(draw: Random) -> HangUp:
    """When a client goes: it may have its whole answer by then."""
    how = draw.choice(["sending", "waiting", "reading"])
    after = {
        "sending": draw.random(), "waiting": draw.expovariate(2), "reading": draw.randint(1, 60),
    }  # fmt: skip
    return HangUp(how, after[how], reset=draw.random() < 0.5)


async def load(served: Served, alone: list[tuple[Asked, Any]], seconds: float) -> Counter[str]:
    """Clients that ask one request after another, and check what they get."""
    counts: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def client(number: int) -> None:
        draw = Random(number)
        while time.monotonic() < until:
            (path, body), wanted = draw.choice(alone)
            goes = moment(draw) if number % 3 == 0 else None
            reply = await ask(served.url, path, body, hang_up=goes)
            if goes is None or reply.whole:
                assert answer(reply) == wanted
                counts["answered"] += 1
            else:
                counts[f"hung up {goes.when}"] += 1

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return counts


def watch(pid: int, over: threading.Event) -> list[int]:
    """Resident bytes of a process, every half second."""
    process, found = psutil.Process(pid), []
    while not over.wait(0.5):
        found.append(process.memory_info().rss)
    return found


def soak(served: Served, seconds: float) -> None:
    asked = requests()
    alone = [((path, body), answer(served.ask(path, body))) for path, body in asked]
    over, sizes = threading.Event(), []
    watcher = threading.Thread(target=lambda: sizes.extend(watch(served.pid, over)))
    watcher.start()
    probe = [sys.executable, serve_load.probe.__file__, served.url, str(seconds)]
    with subprocess.Popen(probe, stdout=subprocess.PIPE, text=True) as health:
        counts = asyncio.run(load(served, alone, seconds))
        told, _ = health.communicate(timeout=60)
    over.set()
    watcher.join()
    check_idle(served)
    print(dict(counts))
    check_counts(counts)
    check_health(json.loads(told), strict=seconds == LONG)
    check_memory(sizes, 0.02 if seconds == LONG else 0.05)
    # The cache is as good as new: what was shared and given back has not been mixed up.
    assert [answer(served.ask(path, body)) for path, body in asked] == [one for _, one in alone]


def check_idle(served: Served) -> None:
    """All blocks come back, and nobody is counted as running or waiting."""

    def idle() -> bool:
        running = sum(served.metric("bc2_requests_running", path) for path in POSTS)
        left = served.metric("bc2_cache_blocks_used") + served.metric("bc2_requests_waiting")
        return not running and not left

    served.wait(idle, 10)
    assert served.metric("bc2_preemptions_total") > 0


def check_counts(counts: Counter[str]) -> None:
    """Each client got several answers on average, and there were hang-ups of all kinds."""
    assert counts["answered"] > CLIENTS
    for when in ("sending", "waiting", "reading"):
        assert counts[f"hung up {when}"] > 5


def check_health(pairs: list[tuple[float, float]], *, strict: bool) -> None:
    """Within 0.1 s: half of the time at least, or if `strict` but once in a thousand times.

    A machine that stands still itself is not counted: a look counts unless the bare socket, asked
    just before and just after it, was slow too. Other tests that take turns with the server are
    not seen so, which is why only a test alone on its machine can be strict.
    """
    bare, health = zip(*pairs, strict=True)
    calm = [
        time
        for time, before, after in zip(health, bare, (*bare[1:], bare[-1]), strict=True)
        if max(before, after) < 0.02
    ]
    slow = [time for time in calm if time > 0.1]
    print(
        f"health: {len(health)} looks, median {statistics.median(health):.4f}, most "
        f"{max(health):.3f}; {len(calm)} calm ones, over 0.1: {len(slow)}; bare: most "
        f"{max(bare):.3f}"
    )
    assert statistics.median(health) < 0.1
    if strict:
        assert len(calm) > len(health) / 2
        assert len(slow) <= max(1, len(calm) // 1000), slow


def check_memory(sizes: list[int], most: float) -> None:
    """It does not grow once all kinds of requests have been seen, which takes some seconds."""
    third = len(sizes) // 3
    middle, end = (statistics.median(part) for part in (sizes[third : 2 * third], sizes[-third:]))
    print(f"memory: {sizes[0] / 1e6:.0f}, {middle / 1e6:.0f}, {end / 1e6:.0f} MB")
    assert end - middle < most * middle


def test_hang_ups_lose_nothing_and_delay_nobody(served: Served) -> None:
    soak(served, SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(LONG + 300)
def test_ten_minutes_of_it(served: Served) -> None:
    soak(served, LONG)

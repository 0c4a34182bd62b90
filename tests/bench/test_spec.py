"""Names of contenders and series as they are typed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bc2
from bc2.bench.process import worker_environment
from bc2.bench.spec import OURS, PEERS, default_peers, parse_names, parse_sizes, weights_of
from bc2.errors import UsageError


def test_names_keep_their_order_and_come_once() -> None:
    assert parse_names("compiled, eager,compiled", OURS, "--ours") == ("compiled", "eager")


@pytest.mark.parametrize(
    ("text", "todo"),
    [("eagre", "did you mean 'eager'?"), ("xyz", "there are: eager, compiled"), (",", "there are")],
)
def test_unknown_names(text: str, todo: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_names(text, OURS, "--ours")
    assert caught.value.todo is not None
    assert caught.value.todo.startswith(todo)


def test_sizes() -> None:
    assert parse_sizes("2,0,2", "--checkpointing") == (2, 0)
    for text in ("", "-1", "1.5", "a"):
        with pytest.raises(UsageError):
            parse_sizes(text, "--checkpointing")


def test_a_precision_is_compared_with_peers_in_it() -> None:
    assert {weights_of(peer) for peer in default_peers("bf16")} == {"bf16", "autocast"}
    assert {weights_of(peer) for peer in default_peers("fp32")} == {"fp32"}
    assert len(default_peers("bf16")) == 4
    assert set(default_peers("bf16")) | set(default_peers("fp32")) == set(PEERS)


@pytest.mark.parametrize(
    ("tuned", "expected"), [(True, bc2.ENVIRONMENT["GOMP_SPINCOUNT"]), (False, "None")]
)
def test_a_plain_environment_has_nothing_of_ours(tuned: bool, expected: str) -> None:
    code = "import bc2, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=worker_environment(tuned=tuned),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected


def test_a_plain_environment_keeps_what_was_set_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    assert worker_environment(tuned=False)["GOMP_SPINCOUNT"] == "77"

"""The Ray engine: a cluster that does not exist, and tasks that a cluster loses."""

from __future__ import annotations

import socket
import time
import types

import pytest

from bc2.data.prep.ray_engine import RayEngine, _join_cluster
from bc2.errors import DataError, ResourceError, RunFailed

ray = pytest.importorskip("ray", reason="needs ray")


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_named_at_once(monkeypatch, scheme):
    address = f"{scheme}127.0.0.1:{closed_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(RunFailed, match="no Ray cluster can be reached") as caught:
        RayEngine()
    assert caught.value.where == f"RAY_ADDRESS={address}"
    assert time.monotonic() - began < 30  # Ray itself tries for minutes


@pytest.mark.parametrize(
    ("lost", "becomes"),
    [
        (ray.exceptions.WorkerCrashedError(), RunFailed),
        (ray.exceptions.OutOfMemoryError("killed"), ResourceError),
        (
            ray.exceptions.RayTaskError("f", "trace", DataError("bad row")).as_instanceof_cause(),
            DataError,
        ),
    ],
)
def test_what_a_cluster_gives_up_is_an_error_of_ours(lost, becomes):
    def get(task):
        raise lost

    engine = RayEngine.__new__(RayEngine)
    engine._ray = types.SimpleNamespace(get=get, exceptions=ray.exceptions)
    with pytest.raises(becomes) as caught:
        engine._result("task")
    if becomes is DataError:
        assert caught.value.what == "bad row"


@pytest.mark.parametrize(("named", "taken"), [("", "local"), ("auto", "auto")])
def test_a_cluster_that_nobody_named_is_not_joined(named, taken):
    given: dict[str, object] = {}
    _join_cluster(types.SimpleNamespace(init=given.update), named)
    assert given["address"] == taken

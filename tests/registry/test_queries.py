from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from bc2.registry import queries


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """What is sent to any index, in order."""
    sent: list[str] = []

    def note(connection, cursor, statement, *rest) -> None:
        sent.append(statement)

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(sa.engine.Engine, "before_cursor_execute", note)


@pytest.fixture
def runs(registry, publish) -> list:
    """Twelve checkpoints of four runs, newest first, with parents and tags."""
    one = publish("checkpoint", "run3", step=11, parents=(publish("corpus", "tiny"),))
    registry.tag(one, "best")
    with registry.index.writing() as connection:
        for number in range(11):
            # Straight into the index: nothing here looks at files.
            made = {"digest": f"{number:064x}", "name": f"run{number % 4}", "key": f"{number:064x}"}
            queries.insert(connection, replace(one, **made, created=f"2000-01-01T{number:02}"))
    return registry.list("checkpoint")


def test_a_limit_takes_the_first_in_order_with_their_parents_and_tags(
    registry, runs, monkeypatch
) -> None:
    assert registry.list("checkpoint", limit=5) == runs[:5]
    assert registry.list("checkpoint", "run3", limit=2) == [runs[0], runs[4]]
    assert registry.list(limit=100) == registry.list()
    monkeypatch.setattr(queries, "_AT_ONCE", 3)
    assert registry.list("checkpoint", limit=5) == runs[:5]
    assert registry.list("checkpoint") == runs
    assert registry.list(limit=1)[0].tags == ("best",)
    assert registry.list(limit=1)[0].parents == runs[0].parents


@pytest.mark.parametrize(
    "ask",
    [
        lambda registry, one: registry.list(limit=3),
        lambda registry, one: registry.newest("checkpoint", ("base", "chat")),
        lambda registry, one: registry.find("checkpoint", one.key),
        lambda registry, one: registry.resolve("run3"),
        lambda registry, one: registry.resolve("checkpoint/run3", roles=("base",)),
    ],
    ids=["list", "newest", "find", "a name", "a name in a role"],
)
def test_what_needs_a_few_artifacts_does_not_read_them_all(registry, runs, statements, ask) -> None:
    _ = registry.index
    statements.clear()
    assert ask(registry, runs[0])
    reads = [text for text in statements if "SELECT artifacts.digest, artifacts.kind" in text]
    assert reads
    assert all("LIMIT" in text for text in reads)
    beside = [text for text in statements if "FROM parents" in text]
    assert beside
    assert not [text for text in beside if "FROM artifacts" in text]


def test_counting_reads_no_artifact(registry, runs, statements) -> None:
    _ = registry.index
    statements.clear()
    assert registry.count("checkpoint") == 12
    assert registry.count(name="run1") == 3
    assert registry.count(roles=("chat",)) == 0
    assert all("count(*)" in text for text in statements if "FROM artifacts" in text)


def test_ended_tells_the_runs_that_finished_since(registry, publish) -> None:
    over = publish("checkpoint", "over", step=1, finished=False)
    going = publish("checkpoint", "going", step=1, finished=False)
    end = publish("checkpoint", "over", step=2)
    assert registry.ended([over, going, end]) == {over.key}
    assert registry.ended([end]) == set()
    with registry.index.reading() as connection:
        # More than a statement takes at once.
        asked = [f"{number:064x}" for number in range(1200)] + [over.key]
        assert queries.ended(connection, asked) == {over.key}


def test_names_kinds_and_tags(registry, publish, runs) -> None:
    registry.tag(runs[0], "last")
    with registry.index.reading() as connection:
        assert queries.names(connection, None) == ["run0", "run1", "run2", "run3", "tiny"]
        assert queries.names(connection, "corpus") == ["tiny"]
        assert queries.kinds_of(connection, "tiny") == ["corpus"]
        assert queries.kinds_of(connection, "none") == []
        found = queries.tags_of(connection, "checkpoint", runs[0].name)
        assert found == {"best": runs[0].digest, "last": runs[0].digest}
    publish("tokens", "tiny")
    with registry.index.reading() as connection:
        assert queries.kinds_of(connection, "tiny") == ["tokens", "corpus"]

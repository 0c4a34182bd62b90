from __future__ import annotations

from rich.console import Console

from bc2.registry.lineage import trace


def drawn(found) -> list[str]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(found.as_tree())
    return capture.get().rstrip().splitlines()


def test_a_diamond_up_and_down(registry, publish) -> None:
    text = publish("corpus", "t")
    words = publish("tokenizer", "w", parents=(text,))
    shards = publish("tokens", "s", parents=(words, text))
    base = publish("checkpoint", "b", step=4, parents=(shards, words))
    registry.tag(text, "v1")

    up = trace(registry, base)
    assert set(up.nodes) == {one.digest for one in (text, words, shards, base)}
    assert set(up.edges()) == {
        (base.digest, shards.digest),
        (base.digest, words.digest),
        (shards.digest, words.digest),
        (shards.digest, text.digest),
        (words.digest, text.digest),
    }
    value = up.as_json()
    assert value["root"] == base.digest
    assert value["nodes"][0]["title"] == "checkpoint/b@4"
    lines = drawn(up)
    assert lines[0] == f"checkpoint/b@4  {base.ref}"
    assert sum("corpus/t :v1" in line for line in lines) == 2
    assert sum("see above" in line for line in lines) == 1
    assert len(lines) == 6

    down = trace(registry, text, down=True)
    assert set(down.nodes) == set(up.nodes)
    assert set(down.edges()) == set(up.edges())
    dot = down.as_dot()
    assert dot.startswith("digraph")
    assert f'"{text.ref}" -> "{words.ref}";' in dot
    assert dot.count("->") == 5


def test_an_artifact_alone(registry, publish) -> None:
    found = trace(registry, publish())
    assert list(found.edges()) == []
    assert len(drawn(found)) == 1

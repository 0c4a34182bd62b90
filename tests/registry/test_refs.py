from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bc2.errors import IntegrityError, RefError
from bc2.registry import KINDS, Artifact, Position
from bc2.registry.refs import UNITS, Ref, _at_tokens, parse

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)


@given(st.sampled_from([None, *KINDS]), names, st.integers(0, 10**12))
def test_steps_are_read_back(kind, name: str, step: int) -> None:
    prefix = f"{kind}/" if kind else ""
    assert parse(f"{prefix}{name}@{step}") == Ref(name=name, kind=kind, step=step)
    assert parse(f"{prefix}{name}") == Ref(name=name, kind=kind)


@given(names, st.integers(0, 9999), st.integers(0, 999), st.sampled_from("KMBT"))
def test_tokens_are_read_back(name: str, whole: int, part: int, unit: str) -> None:
    ref = parse(f"{name}@{whole}.{part}{unit}")
    assert ref == Ref(name=name, count=Decimal(f"{whole}.{part}"), unit=UNITS[unit])
    assert ref is not None
    assert str(ref.count) == f"{whole}.{part}"


@given(names, names)
def test_tags_are_read_back(name: str, tag: str) -> None:
    assert parse(f"{name}:{tag}") == Ref(name=name, tag=tag)


@given(st.text(max_size=12))
def test_any_text_is_a_ref_or_not_and_never_an_error(text: str) -> None:
    ref = parse(text)
    if ref is not None:
        assert ref.name in text
        assert not set(ref.name) & set("@:/ \n")


@pytest.mark.parametrize(
    "text",
    ["", "a@", "a:", "a@b", "a@1.5", "a@5b", "a@-1", "a@1@2", "a:b@1", "corpse/a", "a/b/c", "a\n"],
)
def test_what_is_no_ref(text: str) -> None:
    assert parse(text) is None


def at(tokens: int) -> Artifact:
    from pathlib import Path

    return Artifact("0" * 64, "checkpoint", "a", "k", Position(1, tokens), (), True, "", (), Path())


@given(
    st.lists(st.integers(0, 3 * 10**12), min_size=1, max_size=6),
    st.integers(0, 999),
    st.integers(0, 2),
    st.sampled_from("KMBT"),
)
def test_tokens_match_as_a_person_rounds(tokens, digits: int, places: int, unit: str) -> None:
    count = Decimal(digits).scaleb(-places)
    ref = parse(f"a@{count:f}{unit}")
    assert ref is not None
    size = UNITS[unit]
    exact = [value for value in tokens if value == count * size]
    rounded = [
        value
        for value in tokens
        if (Decimal(value) / size).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP) == count
    ]
    found = [one.position.tokens for one in _at_tokens(ref, [at(value) for value in tokens])]
    assert sorted(found) == sorted(exact or rounded)
    assert found == sorted(found, key=lambda value: abs(value - count * size))


def test_rounding_by_hand() -> None:
    placed = [at(219_400_000_000), at(219_600_000_000), at(220_300_000_000)]
    ref = parse("a@220B")
    assert ref is not None
    assert [one.position.tokens for one in _at_tokens(ref, placed)] == [
        220_300_000_000,
        219_600_000_000,
    ]


def test_a_name_is_its_newest(registry, publish) -> None:
    publish("corpus", "a", seed=1)
    newest = publish("corpus", "a", seed=2)
    assert registry.resolve("a") == newest
    assert registry.resolve("corpus/a") == newest
    assert registry.resolve("a", "corpus") == newest


def test_steps_tokens_and_tags(registry, publish) -> None:
    one = publish("checkpoint", "run", step=1000, tokens=219_700_000_000, finished=False)
    two = publish("checkpoint", "run", step=2000, tokens=440_000_000_000, finished=False)
    end = publish("checkpoint", "run", step=2000, tokens=440_000_000_000)
    registry.tag(one, "best")
    assert registry.resolve("run@1000").digest == one.digest
    assert registry.resolve("run@220B").digest == one.digest
    assert registry.resolve("run@0.44T").digest == end.digest
    assert registry.resolve("run@2000").digest == end.digest
    assert registry.resolve("checkpoint/run:best").digest == one.digest
    assert registry.resolve("run") == end
    assert two.digest != end.digest
    with pytest.raises(RefError, match="nearest steps: 1000, 2000"):
        registry.resolve("run@1001")
    with pytest.raises(RefError, match="did you mean run:best"):
        registry.resolve("run:bset")
    with pytest.raises(RefError, match="nearest tokens"):
        registry.resolve("run@3B")


def test_one_step_of_two_runs_is_ambiguous(registry, publish) -> None:
    one = publish("checkpoint", "run", step=5, seed=1)
    two = publish("checkpoint", "run", step=5, seed=2)
    with pytest.raises(RefError, match="ambiguous") as caught:
        registry.resolve("run@5")
    assert one.ref in str(caught.value)
    assert two.ref in str(caught.value)


def test_a_name_of_several_kinds_is_ambiguous_without_the_kind(registry, publish) -> None:
    corpus, tokens = publish("corpus", "tiny"), publish("tokens", "tiny")
    with pytest.raises(RefError, match="corpus/tiny") as caught:
        registry.resolve("tiny")
    assert "tokens/tiny" in str(caught.value)
    assert caught.value.exit_code == 4
    assert registry.resolve("tiny", "corpus") == corpus
    assert registry.resolve("tokens/tiny") == tokens


def test_digests_by_prefix(registry, publish) -> None:
    made = [publish(seed=seed) for seed in range(5)]
    for artifact in made:
        for length in (8, 16, 64):
            assert registry.resolve(artifact.digest[:length]) == artifact
        assert registry.resolve(artifact.ref.upper()) == artifact
        with pytest.raises(RefError):
            registry.resolve(artifact.digest[:7])


def test_a_name_goes_before_a_digest(registry, publish) -> None:
    first = publish(seed=1)
    named = publish("corpus", first.digest[:10])
    assert registry.resolve(first.digest[:10]) == named
    assert registry.resolve(first.digest[:10], "corpus") == named
    assert registry.resolve(first.digest[:11]) == first


def test_a_path_goes_before_a_name(registry, publish, tmp_path, monkeypatch) -> None:
    import shutil

    named, other = publish("corpus", "a"), publish("corpus", "b")
    shutil.copytree(other.path, tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    found = registry.resolve("a")
    assert found.digest == other.digest
    assert found.path == tmp_path / "a"
    assert registry.resolve("corpus/a") == named
    assert registry.resolve(str(named.path)) == named


def test_a_path_inside_the_home_must_be_published(registry, publish) -> None:
    from bc2.registry import index as ix

    artifact = publish()
    with registry.index.writing() as connection:
        ix.delete(connection, artifact.digest)
    with pytest.raises(RefError, match="not a published artifact"):
        registry.resolve(str(artifact.path))


def test_a_broken_path_is_an_integrity_error(registry, tmp_path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(IntegrityError):
        registry.resolve(str(tmp_path))


def test_the_wrong_kind_says_which_it_is(registry, publish) -> None:
    artifact = publish("tokenizer", "a")
    for ref in ("a", artifact.ref, str(artifact.path), "tokenizer/a"):
        with pytest.raises(RefError, match="is a tokenizer, and a checkpoint is needed"):
            registry.resolve(ref, "checkpoint")


def test_unknown_refs_get_the_nearest_name(registry, publish) -> None:
    with pytest.raises(RefError, match="no artifact yet"):
        registry.resolve("tiny")
    publish("corpus", "tiny")
    with pytest.raises(RefError, match="did you mean 'tiny'"):
        registry.resolve("tinny")
    with pytest.raises(RefError, match="it is not a ref"):
        registry.resolve("./nowhere/at all")

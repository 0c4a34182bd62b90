from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.errors import IntegrityError, RefError
from bc2.registry import KINDS, Artifact, Position, Registry, queries
from bc2.registry import index as ix
from bc2.registry.refs import UNITS, Ref, _at_tokens, _rounded, parse

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
    where = Position(1, tokens)
    return Artifact("0" * 64, "checkpoint", "a", "k", "base", where, (), True, "", (), Path())


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
    from bc2.registry import queries

    artifact = publish()
    with registry.index.writing() as connection:
        queries.delete(connection, artifact.digest)
    with pytest.raises(RefError, match="not a published artifact"):
        registry.resolve(str(artifact.path))


def test_a_copy_inside_the_home_is_not_the_published_artifact(registry, publish) -> None:
    artifact = publish()
    copy = artifact.path.with_name("copy")
    shutil.copytree(artifact.path, copy)
    assert registry.resolve(str(artifact.path)) == artifact
    with pytest.raises(RefError, match="not a published artifact"):
        registry.resolve(str(copy))


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


def test_a_ref_means_one_of_a_role_that_is_needed(registry, publish) -> None:
    base = publish("checkpoint", "run", step=5, role="base")
    chat = publish("checkpoint", "run", seed=1, step=5, role="chat")
    assert registry.resolve("run") == chat
    for ref in ("run", "checkpoint/run", "run@5", "run@0.5K", base.ref, str(base.path)):
        assert registry.resolve(ref, "checkpoint", ("base", "merged")) == base
    with pytest.raises(RefError, match="ambiguous"):
        registry.resolve("run@5", "checkpoint", ("base", "chat"))


def test_a_role_that_cannot_be_used_is_said(registry, publish) -> None:
    publish("checkpoint", "run", step=5, tokens=5000, role="base")
    other = publish("checkpoint", "lora", step=7, tokens=7000, role="adapter")
    registry.tag(other, "best")
    wanted = "is a checkpoint of role adapter, and one of role base, chat or merged is needed"
    for ref in ("lora", "lora@7", "lora@7K", "lora:best", other.ref, str(other.path)):
        with pytest.raises(RefError, match=wanted) as caught:
            registry.resolve(ref, "checkpoint", ("base", "chat", "merged"))
        assert caught.value.exit_code == 4
    text = publish("corpus", "text")
    with pytest.raises(RefError, match="is a corpus, and a checkpoint is needed"):
        registry.resolve(text.ref, "checkpoint", ("base",))


@pytest.mark.parametrize("ref", [f"run@{10**30}", f"run@{10**30}T", "run@0", "run@0.5K"])
def test_numbers_that_no_checkpoint_can_have(registry, publish, ref: str) -> None:
    publish("checkpoint", "run", step=3, tokens=30_000_000)
    with pytest.raises(RefError, match="the nearest"):
        registry.resolve(ref)


@given(tokens=st.integers(0, 10**9), digits=st.integers(0, 10**6), unit=st.sampled_from("KMB"))
def test_no_checkpoint_that_rounds_to_it_is_left_out_of_the_query(tokens, digits, unit) -> None:
    for places in (0, 1, 3):
        ref = parse(f"a@{Decimal(digits).scaleb(-places):f}{unit}")
        assert ref is not None
        low, high = _rounded(ref)
        assert low <= tokens <= high or not _at_tokens(ref, [at(tokens)])


def test_what_only_one_artifact_can_mean_is_that_one(registry, publish) -> None:
    corpus = publish("corpus", "tiny")
    publish("tokenizer", "tiny", parents=(corpus,))
    publish("tokens", "tiny", parents=(corpus,))
    early = publish("checkpoint", "tiny", step=300, tokens=219_700_000_000, finished=False)
    end = publish("checkpoint", "tiny", step=600, tokens=440_000_000_000)
    registry.tag(end, "best")
    registry.tag(corpus, "clean")
    assert registry.resolve("tiny:best").digest == end.digest
    assert registry.resolve("tiny:clean").digest == corpus.digest
    assert registry.resolve("tiny@300") == early
    assert registry.resolve("tiny@220B") == early
    assert registry.resolve("tiny", roles=("base",)).digest == end.digest
    with pytest.raises(RefError, match="corpus/tiny"):
        registry.resolve("tiny")
    with pytest.raises(RefError, match="did you mean tiny:best"):
        registry.resolve("tiny:bset")
    with pytest.raises(RefError, match="the nearest steps: 300, 600"):
        registry.resolve("tiny@301")
    registry.tag(corpus, "best")
    with pytest.raises(RefError, match="ambiguous") as caught:
        registry.resolve("tiny:best")
    assert "corpus/tiny:best" in str(caught.value)
    assert "checkpoint/tiny:best" in str(caught.value)
    assert registry.resolve("corpus/tiny:best").digest == corpus.digest


_made = st.builds(
    lambda kind, name, key, role, step, tokens, tag: (kind, name, key, role, step, tokens, tag),
    st.sampled_from(["corpus", "tokens", "checkpoint"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["k", "l"]),
    st.sampled_from(["base", "chat"]),
    st.integers(1, 3),
    st.sampled_from([1_000, 1_400, 1_600, 2_000]),
    st.sampled_from([None, "t", "u"]),
)
_suffixes = ["", "@1", "@2", "@1K", "@1.4K", "@2K", ":t", ":u"]


_needs = [(None, None), ("checkpoint", None), ("checkpoint", ("chat",))]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry whose index each example of a property fills anew."""
    registry = Registry.open(tmp_path_factory.mktemp("shelf"))
    _ = registry.index
    return registry


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(_made, max_size=8),
    name=st.sampled_from(["a", "b"]),
    own=st.sampled_from([None, "corpus", "checkpoint"]),
    needed=st.sampled_from(_needs),
)
def test_refs_mean_what_their_definition_says(shelf, rows, name, own, needed) -> None:
    """Refs to a random registry, beside a definition by enumeration."""
    made = _register(shelf, rows)
    kind, roles = needed
    for suffix in _suffixes:
        text = f"{own}/{name}{suffix}" if own else f"{name}{suffix}"
        wanted = _meant(made, name, suffix, {own, kind} - {None}, roles)
        assert _resolved(shelf, text, kind, roles) == wanted, text


def _register(registry: Registry, rows) -> list[Artifact]:
    made: list[Artifact] = []
    with registry.index.writing() as connection:
        for table in (ix.artifacts, ix.tags):
            connection.execute(table.delete())
        for number, (kind, name, key, role, step, tokens, tag) in enumerate(rows):
            is_run = kind == "checkpoint"
            artifact = Artifact(
                f"{number:064x}", kind, name, kind + key, role if is_run else None,
                Position(step, tokens) if is_run else None, (), True,
                f"2026-01-01T00:00:00.{number:06d}Z", (), Path(),
            )  # fmt: skip
            queries.insert(connection, artifact)
            made = [_without(one, tag) if (one.kind, one.name) == (kind, name) else one
                    for one in made]  # fmt: skip
            if tag:
                queries.set_tag(connection, kind, name, tag, artifact.digest)
            made.append(replace(artifact, tags=(tag,) if tag else ()))
    return made


def _without(artifact: Artifact, tag: str | None) -> Artifact:
    return replace(artifact, tags=tuple(one for one in artifact.tags if one != tag))


def _meant(made: Sequence[Artifact], name: str, suffix: str, kinds: set[str], roles) -> str | None:
    """The digest of the one artifact that a ref means; None: none, or several."""
    if len(kinds) > 1:
        return None
    named = [one for one in made if one.name == name and kinds <= {one.kind}]
    usable = [one for one in named if roles is None or one.role in roles]
    if suffix.startswith(":"):
        meant = [one for one in usable if suffix[1:] in one.tags]
    elif suffix.endswith("K"):
        count = Decimal(suffix[1:-1])
        placed = [(one, Decimal(one.position.tokens) / 1000) for one in usable if one.position]
        exact = [one for one, tokens in placed if tokens == count]
        rounded = [pair for pair in placed if pair[1].quantize(count, ROUND_HALF_UP) == count]
        meant = exact or [one for one, _ in rounded]
        nearest = {one.digest: abs(tokens - count) for one, tokens in placed}
        meant.sort(key=lambda one: (nearest[one.digest], [-ord(c) for c in one.created]))
    elif suffix:
        meant = [one for one in usable if one.position and one.position.step == int(suffix[1:])]
        meant.sort(key=lambda one: one.created, reverse=True)
    else:
        meant = sorted(usable, key=lambda one: one.created, reverse=True)
        return meant[0].digest if len({one.kind for one in meant}) == 1 else None
    same = len({(one.kind, one.key) for one in meant}) == 1
    return meant[0].digest if same else None


def _resolved(registry: Registry, text: str, need, roles) -> str | None:
    try:
        return registry.resolve(text, need, roles).digest
    except RefError:
        return None

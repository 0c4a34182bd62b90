from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bc2.errors import UsageError
from bc2.registry import KINDS, ROLES, Draft, Position, stage_key
from bc2.registry.draft import check_name, role_of, spell_roles

KEY = "0" * 64


def test_stage_key_is_the_digest_of_its_canonical_json() -> None:
    spelled = '{"kind":"corpus","parents":["p","q"],"settings":{"a":1,"b":"é"},"version":3}'
    expected = hashlib.sha256(spelled.encode()).hexdigest()
    assert stage_key("corpus", 3, {"b": "é", "a": 1}, ["p", "q"]) == expected


def test_stage_key_depends_on_everything_that_affects_results() -> None:
    keys = {
        stage_key("corpus", 1, {"a": 1}, ["p", "q"]),
        stage_key("tokens", 1, {"a": 1}, ["p", "q"]),
        stage_key("corpus", 2, {"a": 1}, ["p", "q"]),
        stage_key("corpus", 1, {"a": 2}, ["p", "q"]),
        stage_key("corpus", 1, {"a": 1}, ["q", "p"]),
        stage_key("corpus", 1, {"a": 1}, ["p"]),
    }
    assert len(keys) == 6


@given(st.text(max_size=20))
def test_a_name_is_taken_exactly_when_it_fits_the_grammar(name: str) -> None:
    fits = re.match(r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", name)
    digest_like = re.match(r"^[0-9a-f]{16,}\Z", name)
    if fits and not digest_like:
        assert check_name(name) == name
    else:
        with pytest.raises(UsageError):
            check_name(name)


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "-x", "a b", "a\n", "x" * 201, "ab" * 8])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError):
        Draft("corpus", name, KEY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "corpse"},
        {"key": "abc"},
        {"key": "G" * 64},
        {"parents": ("abc",)},
        {"position": Position(-1, 0)},
        {"facts": {"loss": float("nan")}},
        {"facts": {"path": object()}},
        {"recipe": {"text": "\ud800"}},
        {"role": "base"},
        {"kind": "checkpoint", "role": "bass"},
    ],
)
def test_drafts_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Draft(**{"kind": "corpus", "name": "a", "key": KEY, **wrong})


def test_a_role_is_of_a_checkpoint_and_a_known_one() -> None:
    for role in ROLES:
        assert Draft("checkpoint", "a", KEY, role=role).role == role
    assert Draft("checkpoint", "a", KEY).role is None
    with pytest.raises(UsageError, match="corpus/a cannot have the role 'base'"):
        Draft("corpus", "a", KEY, role="base")
    with pytest.raises(UsageError, match="did you mean 'adapter'"):
        Draft("checkpoint", "a", KEY, role="adaptor")  # type: ignore[arg-type]


def test_what_has_no_recorded_role_is_a_base_model_if_it_is_a_checkpoint() -> None:
    assert role_of("checkpoint", None) == "base"
    assert role_of("checkpoint", "chat") == "chat"
    assert [role_of(kind, None) for kind in KINDS if kind != "checkpoint"] == [None] * (
        len(KINDS) - 1
    )


def test_roles_are_spelled_for_messages() -> None:
    assert spell_roles(["merged", "base", "chat"]) == "base, chat or merged"
    assert spell_roles(["reward", "chat"]) == "chat or reward"
    assert spell_roles({"reward"}) == "reward"

"""Which checkpoint a command works with."""

from __future__ import annotations

import pytest

from bc2.errors import RefError
from bc2.generate.chosen_model import chosen_model, chosen_reward_model, chosen_to_serve
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
from bc2.registry import Artifact, Draft, Position, Registry, Role


@pytest.fixture
def registry(tmp_path):
    return Registry.open(tmp_path / "home")


def publish(registry: Registry, name: str, role: Role | None = None) -> Artifact:
    kind = "checkpoint" if role else "corpus"
    position = Position(1, 1) if role else None
    with registry.stage(Draft(kind, name, "0" * 64, position=position, role=role)) as staged:
        (staged.path / "data").write_text(name)
        return staged.publish()


def test_the_newest_one_that_predicts_is_taken_and_said(registry, capsys):
    publish(registry, "older", "base")
    newest = publish(registry, "newest", "chat")
    publish(registry, "grader", "reward")
    publish(registry, "corpus")
    assert chosen_model(registry, None) == newest
    said = capsys.readouterr().err
    assert f"taking the newest model, {newest.title} ({newest.ref})" in " ".join(said.split())


def valued(registry: Registry, name: str, role: Role) -> Artifact:
    """A checkpoint with a scalar head."""
    shape = ModelConfig(
        vocab_size=8, hidden_size=4, intermediate_size=8, num_layers=1, num_heads=2, head="scalar"
    )
    with registry.stage(Draft("checkpoint", name, name.encode().hex().ljust(64, "0"),
                              position=Position(1, 1), role=role)) as staged:  # fmt: skip
        save_model(staged.path, shape, Transformer(shape).state_dict())
        return staged.publish()


def test_the_newest_with_a_scalar_head_is_passed_over(registry):
    speaking = publish(registry, "speaking", "chat")
    valued(registry, "valued", "adapter")
    valued(registry, "judge", "reward")
    assert chosen_model(registry, None) == speaking


def test_a_reward_model_is_one_with_a_scalar_head(registry):
    judge = valued(registry, "judge", "reward")
    publish(registry, "talker", "chat")
    assert chosen_reward_model(registry, "judge") == judge
    assert chosen_to_serve(registry, "judge") == judge
    with pytest.raises(RefError, match="of role chat, and one of role adapter or reward"):
        chosen_reward_model(registry, "talker")
    shape = ModelConfig(vocab_size=8, hidden_size=4, intermediate_size=8, num_layers=1, num_heads=2)
    draft = Draft("checkpoint", "speaks", "1" * 64, position=Position(1, 1), role="adapter")
    with registry.stage(draft) as staged:
        save_model(staged.path, shape, Transformer(shape).state_dict())
        staged.publish()
    with pytest.raises(RefError, match="has a language head, and only a reward model scores"):
        chosen_reward_model(registry, "speaks")


def test_a_named_one_is_taken_in_silence(registry, capsys):
    older = publish(registry, "older", "merged")
    publish(registry, "newest", "base")
    assert chosen_model(registry, "older") == chosen_model(registry, older.ref) == older
    assert capsys.readouterr().err == ""


def test_what_predicts_no_token_is_refused(registry):
    publish(registry, "grader", "reward")
    publish(registry, "text")
    for ref in ("grader", "text", "nosuch"):
        with pytest.raises(RefError, match=ref):
            chosen_model(registry, ref)
    with pytest.raises(RefError):
        chosen_model(registry, None)


@pytest.mark.parametrize("head", [{"head": "scalar"}, {"head": "classes", "num_classes": 3}])
def test_a_model_without_a_language_head_is_refused_whatever_its_role(registry, head):
    shape = ModelConfig(
        vocab_size=8, hidden_size=4, intermediate_size=8, num_layers=1, num_heads=2, **head
    )
    draft = Draft("checkpoint", "valued", "0" * 64, position=Position(1, 1), role="base")
    with registry.stage(draft) as staged:
        save_model(staged.path, shape, Transformer(shape).state_dict())
        valued = staged.publish()
    for ref in ("valued", None):
        with pytest.raises(RefError, match=f"valued@1 has a {head['head']} head") as info:
            chosen_model(registry, ref)
        assert info.value.where == valued.ref


def test_an_empty_registry_says_how_to_get_a_model(registry):
    with pytest.raises(RefError) as info:
        chosen_model(registry, None)
    assert "bc2 pretrain recipes/tiny.toml" in str(info.value)
    assert "bc2 registry import" in str(info.value)

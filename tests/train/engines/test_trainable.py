"""Which parameters are trained: by names, by a predicate, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bc2.train.engines.trainable import freeze, names_to_train

NAMES = ("a.weight", "a.bias", "b.weight")


def test_names_and_predicates_choose_and_none_is_all() -> None:
    assert names_to_train(NAMES, None) == set(NAMES)
    assert names_to_train(NAMES, ["b.weight"]) == {"b.weight"}
    assert names_to_train(iter(NAMES), lambda name: name.startswith("a.")) == set(NAMES[:2])


def test_unknown_names_and_none_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter c\.weight to train"):
        names_to_train(NAMES, {"a.bias", "c.weight"})
    for nothing in ((), lambda name: False):
        with pytest.raises(ValueError, match="no parameter of the model is trained"):
            names_to_train(NAMES, nothing)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_what_is_frozen_is_held_in_another_type(device: str) -> None:
    model = nn.Linear(3, 4, device=device)
    freeze(model, {"bias"}, torch.bfloat16)
    found = {
        n: (p.dtype, p.requires_grad) for n, p in model.to_empty(device="cpu").named_parameters()
    }
    assert found == {"weight": (torch.bfloat16, False), "bias": (torch.float32, True)}

"""A proof's numbers in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def shown(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was compared, and what came of it, for a table of two columns.

    Args:
        facts: of `bc2.convert.proof.prove.prove`.
    """
    return list(_rows(facts))


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if facts["level"] == "none":
        yield "proof", "none was asked for"
        return
    tensors = facts["tensors"]
    size = f"{tensors['bytes'] / 1e6:,.1f} MB"
    yield "tensors", f"{tensors['tensors']:,} ({size}) read back, each as the checkpoint has it"
    if facts["level"] == "full":
        program, text = facts["program"], facts["text"]
        yield "program", f"{program['name']} {program['version']}, on {text['title']}"
        if "scores" in facts:
            yield from _score_rows(facts["scores"])
        else:
            yield from _model_rows("the file", facts["model"])
        if "model_in_fp32" in facts:
            yield from _model_rows("same weights in fp32", facts["model_in_fp32"])
        yield from _text_rows(facts["tokenizer"])
        chat = facts["chat"]
        if chat["conversations"]:
            yield "chat", f"{chat['conversations']} conversations, the layout {chat['layout']}"
        else:
            yield "chat", "the model has no layout"
    yield "time", f"{facts['seconds']:,.1f} s"


def _model_rows(what: str, model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    bound = model["difference_bound"]
    most = f" (at most {bound:g})" if bound is not None else ""
    yield what, f"log-probabilities within {model['largest_difference']:.2g}{most}"
    here, there = model["perplexity_here"], model["perplexity_there"]
    tokens = f"{model['tokens']:,} tokens"
    yield "", f"perplexity {there:.6g}, ours {here:.6g}, of {tokens}"
    if "greedy_tokens" in model:
        yield "", f"{model['greedy_tokens']:,} greedy tokens, all the same"
        for tie in model["near_ties"]:
            yield "", f"from there on others: {tie}"


def _score_rows(scores: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    bound = f"(at most {scores['difference_bound']:.2g})"
    within = f"within {scores['largest_difference']:.2g} {bound}"
    yield "scores", f"of {scores['texts']:,} conversations {within}"
    yield "", "in batches filled left and right"
    yield "", f"from {scores['lowest']:.4g} to {scores['highest']:.4g}"


def _text_rows(tokenizer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "tokenizer", f"{tokenizer['same']:,} of {tokenizer['strings']:,} strings the same ids"
    for one in tokenizer["known_differences"]:
        yield "", f"{one['strings']:,}: {one['what']}, such as {one['example']}"

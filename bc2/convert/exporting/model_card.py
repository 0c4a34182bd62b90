"""The model card of an export, from its lineage: data, tokenizer, settings, scores, proof.

It goes to strangers: no path of this machine is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bc2.convert.exporting.target import ExportPlan
from bc2.data.language_tags import is_code
from bc2.pipeline.table import ALGORITHMS
from bc2.registry import Artifact, Registry
from bc2.registry.lineage import trace

CARD = "README.md"

#: Settings of a run that say how a model was trained, not where.
_TRAINING = (
    "length", "epochs", "batch_tokens", "sequence_length", "optimizer", "schedule", "precision",
    "z_loss_weight", "seed", "method", "models", "lora",
)  # fmt: skip


def model_card(
    registry: Registry, artifact: Artifact, plan: ExportPlan, proof: Mapping[str, Any]
) -> str:
    """The card as Markdown, with the front matter that a hub reads.

    Args:
        artifact: the checkpoint that was converted.
        proof: what the proof found.
    """
    line = trace(registry, artifact)
    ancestors = [node for node in line.nodes.values() if node is not None]
    sections = (
        _head(artifact, plan),
        _data(ancestors),
        _training(ancestors),
        _scores(registry.children(artifact)),
        _proof(proof),
        ["## Lineage", "", "```", *_tree(artifact, line.nodes, line.steps), "```"],
    )
    body = "\n\n".join("\n".join(section) for section in sections if section)
    return f"{_front(ancestors, plan)}\n{body}\n"


def _front(ancestors: Iterable[Artifact], plan: ExportPlan) -> str:
    languages = sorted({source["lang"] for source in _sources(ancestors) if _is_language(source)})
    lines = ["---", f"library_name: {plan.prover or 'bc2'}", f"pipeline_tag: {_task(plan)}"]
    lines += ["language:", *(f"- {json.dumps(one)}" for one in languages)] if languages else []
    return "\n".join([*lines, "tags:", "- bc2", f"- {plan.format}", "---", ""])


def _scores_texts(plan: ExportPlan) -> bool:
    return any(target.name == "score.weight" for target in plan.tensors)


def _task(plan: ExportPlan) -> str:
    return "text-classification" if _scores_texts(plan) else "text-generation"


def _is_language(source: Mapping[str, Any]) -> bool:
    lang = source.get("lang")
    return isinstance(lang, str) and not is_code(lang)


def _sources(ancestors: Iterable[Artifact]) -> Iterator[Mapping[str, Any]]:
    for one in ancestors:
        if one.kind == "corpus":
            yield from one.manifest.facts.get("sources", [])


def _head(artifact: Artifact, plan: ExportPlan) -> list[str]:
    at = "" if artifact.position is None else f", after {artifact.position.tokens:,} tokens"
    lines = [
        f"# {artifact.name}",
        "",
        f"A {artifact.role or 'base'} model of bc2{at}, in the format `{plan.format}` "
        f"({plan.numbers}). Its digest in the registry is `{artifact.digest}`.",
    ]
    if plan.prover == "transformers":
        code = ", trust_remote_code=True" if _has_code(plan) else ""
        kind = "SequenceClassification" if _scores_texts(plan) else "CausalLM"
        auto = f"AutoModelFor{kind}"
        lines += ["", "```python", f"from transformers import {auto}, AutoTokenizer"]
        for name, made in (("tokenizer", "AutoTokenizer"), ("model", auto)):
            lines.append(f"{name} = {made}.from_pretrained(PATH{code})")
        lines.append("```")
    elif plan.prover == "llama.cpp":
        lines += ["", "```", f"llama-server -m {next(iter(plan.sizes))}", "```"]
    return lines


def _has_code(plan: ExportPlan) -> bool:
    return any(name.endswith(".py") for name in plan.texts)


def _data(ancestors: list[Artifact]) -> list[str]:
    rows = [
        (
            source.get("name", ""),
            source.get("lang") or "",
            f"{_documents(source):,}",
            source.get("licence") or "not stated",
        )
        for source in _sources(ancestors)
    ]
    chats = [one for one in ancestors if one.kind == "chats"]
    for one in chats:
        licences = one.manifest.facts.get("licences", {})
        rows += [
            (name, "chats", f"{count:,}", licences.get(name) or "not stated")
            for name, count in one.manifest.facts.get("sources", {}).items()
        ]
    if not rows:
        return []
    return ["## Data", "", *_table(("source", "language", "documents", "licence"), rows)]


def _documents(source: Mapping[str, Any]) -> int:
    found = source.get("train", {})
    return int(found.get("documents", 0)) if isinstance(found, Mapping) else 0


def _training(ancestors: list[Artifact]) -> list[str]:
    lines: list[str] = []
    tokenizers = [one for one in ancestors if one.kind == "tokenizer"]
    for one in tokenizers:
        size = one.manifest.facts.get("vocab_size")
        lines.append(f"- tokenizer {one.name}: {size:,} pieces" if size else "")
    for one in ancestors:
        for section in (*ALGORITHMS, "merge"):
            own = one.manifest.recipe.get(section) if one.kind == "checkpoint" else None
            if isinstance(own, Mapping):
                lines += [f"- {section} ({one.title}): {_said(own)}"]
    lines = [line for line in lines if line]
    return ["## Training", "", *lines] if lines else []


def _said(section: Mapping[str, Any]) -> str:
    found = {name: section[name] for name in _TRAINING if section.get(name) is not None}
    return ", ".join(f"{name} = {json.dumps(one)}" for name, one in found.items())


def _scores(children: Iterable[Artifact]) -> list[str]:
    rows = []
    for one in children:
        facts = one.manifest.facts
        if one.kind == "scores" and isinstance(facts.get("score"), int | float):
            error = facts.get("stderr")
            spread = f" ± {error:.4f}" if isinstance(error, int | float) else ""
            score = f"{facts['score']:.4f}{spread}"
            rows.append((facts["suite"], facts["metric"], score, f"{facts['samples']:,}"))
    if not rows:
        return []
    return ["## Scores", "", *_table(("benchmark", "metric", "score", "samples"), rows)]


def _proof(proof: Mapping[str, Any]) -> list[str]:
    from bc2.convert.proof.shown import shown

    return ["## Proof", "", *_table(("", ""), shown(proof))]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return (
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        )

    return [line(head), line("---" for _ in head), *map(line, rows)]


def _tree(
    artifact: Artifact,
    nodes: Mapping[str, Artifact | None],
    steps: Mapping[str, list[str]],
    depth: int = 0,
) -> Iterator[str]:
    yield f"{'  ' * depth}{artifact.title} {artifact.digest[:16]}"
    for digest in steps.get(artifact.digest, []):
        found = nodes.get(digest)
        if found is None:
            yield f"{'  ' * (depth + 1)}{digest[:16]} (not registered)"
        else:
            yield from _tree(found, nodes, steps, depth + 1)

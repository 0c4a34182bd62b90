"""The model that a policy is held to: it must read and write as the policy does."""

from __future__ import annotations

from bc2.align.samples.speech import check_speaks
from bc2.errors import DataError, RecipeError
from bc2.model.model_config import differences
from bc2.model.store import CONFIG, load_config
from bc2.registry import Artifact, Registry
from bc2.registry.lineage import trace
from bc2.tokenizer.chat import Chat
from bc2.tokenizer.chat_file import read_chat
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import CHAT_FILE, tokenizer_path
from bc2.train.algorithm import INIT
from bc2.train.run import Run

#: The setting that names it.
_KEY = "reference"


def reference_of(run: Run) -> Artifact:
    """The model that a policy is held to: that which is named, or what the run begins with."""
    return run.inputs.get(_KEY) or run.inputs.one(INIT.name)


def check_reference(run: Run, layout: Chat) -> None:
    """Check what a named reference must have in common with the policy.

    Args:
        layout: by which the policy reads turns.

    Raises:
        RefError: it is a reward model.
        RecipeError: it is of another shape, or its tokenizer is another one.
        DataError: it reads turns by another layout.
    """
    reference, base = run.inputs.get(_KEY), run.inputs.one(INIT.name)
    if reference is None or reference.digest == base.digest:
        return
    where = f"{run.config.section}.{_KEY}"
    check_speaks(reference, where)
    mine, theirs = (Tokenizer.load(tokenizer_path(one)) for one in (base, reference))
    if mine.digest != theirs.digest:
        raise RecipeError(
            f"{reference.title} has another tokenizer ({theirs.vocab_size:,} pieces) than "
            f"{base.title} ({mine.vocab_size:,} pieces): their log-probabilities are of other "
            "tokens",
            where=where,
            todo="name a reference with the same tokenizer",
        )
    other = differences(load_config(reference.file(CONFIG).parent), run.model)
    if other:
        raise RecipeError(
            f"{reference.title} is another model than {base.title}: {', '.join(other.values())}",
            where=where,
            todo="name a reference of the same base",
        )
    if CHAT_FILE in reference.files():
        own = read_chat(reference.file(CHAT_FILE), theirs)
        if own.to_json() != layout.to_json():
            raise DataError(
                f"{reference.title} reads turns by the layout {own.name}, and the policy by "
                f"{layout.name}",
                where=where,
                todo="name a reference that was taught the same layout",
            )


def check_same_base(run: Run, registry: Registry) -> None:
    """Check that policy and reference come from one base.

    Raises:
        RecipeError: no model is among the ancestors of both.
    """
    reference, base = reference_of(run), run.inputs.one(INIT.name)
    if reference.digest == base.digest:
        return
    if not _models_before(registry, reference) & _models_before(registry, base):
        raise RecipeError(
            f"{reference.title} and {base.title} come from different bases",
            where=f"{run.config.section}.{_KEY}",
            todo="name a reference that the policy comes from, or that comes from the same base",
        )


def _models_before(registry: Registry, artifact: Artifact) -> set[str]:
    """Digests of a checkpoint and of those that it comes from."""
    nodes = trace(registry, artifact).nodes
    return {digest for digest, one in nodes.items() if one is not None and one.kind == "checkpoint"}

"""``init``: the checkpoints that the models of a run begin with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bc2.console import note
from bc2.errors import DataError, RecipeError
from bc2.model.adapters import AddAdapters
from bc2.model.lora import add_lora
from bc2.model.lora_config import LoraConfig
from bc2.model.model_config import ModelConfig, differences
from bc2.model.saved_adapter import SavedAdapter, base_of, holds_adapters
from bc2.model.store import CONFIG, check_shapes, load_config, weight_files
from bc2.parallel.agreement import fail_together
from bc2.parallel.build import StartWeights
from bc2.parallel.file_check import check_files_together
from bc2.parallel.merged_weights import MergedWeights, with_head
from bc2.parallel.mesh import Group, Mesh
from bc2.parallel.state import ShapedSource, StateSource, Stored
from bc2.registry import Artifact

if TYPE_CHECKING:
    from bc2.train.algorithm import ModelRole
    from bc2.train.run import Run


def check_start(run: Run) -> None:
    """Check that every model of a run has the shape of what it begins with; reads no weights.

    Raises:
        RecipeError: it has another one, or other adapters; what differs is named.
        RefError: the base of an adapter is not registered.
        IntegrityError: a configuration is not what was published.
    """
    for role in run.settings.models:
        artifact = start_of(run, role)
        if artifact is not None:
            _check_shape(run, role, artifact)


def start_of(run: Run, role: ModelRole) -> Artifact | None:
    """The checkpoint that a model of a run begins with; None: the seed draws its weights."""
    return run.inputs.get(role.init) if role.init is not None else None


def _check_shape(run: Run, role: ModelRole, artifact: Artifact) -> None:
    _Adapted.of(artifact, role.adapters)
    artifact.file(CONFIG)
    other = differences(load_config(artifact.path), role.model)
    if other:
        raise RecipeError(
            f"{run.config.section}.{role.init} = {artifact.title} is another model: "
            f"{', '.join(other.values())}",
            where=run.settings.recipe.where(("model", next(iter(other)))),
            todo="make [model] equal, or start from another checkpoint",
        )


def start_weights(run: Run, mesh: Mesh, *, resumes: bool) -> dict[str, StateSource]:
    """By role, the weights that the models of a run begin with. All ranks call it.

    Args:
        resumes: the trained ones get a checkpoint's weights instead, if it has all of them.
    """
    found: dict[str, StateSource] = {}
    for role in run.settings.models:
        artifact = start_of(run, role)
        if artifact is None or (resumes and role.trained and not role.alone):
            continue
        weights = open_start_weights(
            artifact, role.model, run.config.seed, mesh, adapters=role.adapters
        )
        if weights.draws_head and mesh.first:
            note(
                f"{role.name} begins with {artifact.title}, whose head is not "
                f"{role.model.head}: its own is drawn from the seed"
            )
        found[role.name] = weights
    return found


def open_start_weights(
    artifact: Artifact,
    config: ModelConfig,
    seed: int,
    mesh: Mesh | None = None,
    *,
    adapters: AddAdapters | None = None,
) -> StartWeights:
    """Open a checkpoint's weights, each file checked against its digest; nothing else is read.

    Of an adapter its base is opened too. It is merged into the weights, or trained on where the
    model has the same adapters.

    Args:
        config: of the model that is filled. Its head alone may be another one.
        seed: such a head is drawn from it.
        mesh: the ranks. Each checks some of the files; all of them call this.
        adapters: those of the model that is filled, which are drawn from the seed if the
            artifact has none.

    Raises:
        DataError: the artifact holds no weights, or adapters of a kind that bc2 does not load.
        RefError: the base of an adapter is not registered.
        IntegrityError: a file is not what was published, or not what the artifact's own
            configuration says; on every rank alike.
        RecipeError: the weights do not fit the model; on every rank alike.
    """
    ranks = (mesh or Mesh()).side
    with fail_together(ranks):
        adapted = _Adapted.of(artifact, adapters)
    base = artifact if adapted is None else adapted.base
    stored = _checked(base, ranks)
    with fail_together(ranks):
        check_shapes(stored.shapes, load_config(base.path), base.title)
    begun = stored if adapted is None else adapted.beside(stored, _checked(artifact, ranks))
    with fail_together(ranks):
        return StartWeights(config, begun, seed, adapters)


def _checked(artifact: Artifact, ranks: Group) -> Stored:
    """A checkpoint's files of weights, checked against their digests, and its configuration."""
    names = weight_files(artifact.files())
    check_files_together(artifact, ranks, only={CONFIG, *names})
    with fail_together(ranks):
        if not names:
            raise DataError("it holds no weights to start from", where=artifact.title)
        return Stored.open([artifact.path / name for name in names])


@dataclass(frozen=True)
class _Adapted:
    """Adapters to begin with, and the model that they are beside."""

    base: Artifact
    lora: LoraConfig
    trained_on: bool
    """Whether the model has the same adapters, which are trained on; else they are merged."""

    @classmethod
    def of(cls, artifact: Artifact, adapters: AddAdapters | None) -> _Adapted | None:
        """What an artifact says of its adapters; None: it holds a whole model.

        Args:
            adapters: those of the model that is filled.

        Raises:
            RefError: the base is not registered.
            RecipeError: the model has other adapters.
        """
        if not holds_adapters(artifact):
            return None
        lora = SavedAdapter.of(artifact).lora
        if adapters is not None and adapters != add_lora(lora):
            raise RecipeError(
                f"{artifact.title} is an adapter of rank {lora.rank} with alpha {lora.alpha:g} "
                f"beside {', '.join(lora.targets)}, and `lora` says another one",
                todo="make `lora` equal to train it on, or begin with what `bc2 merge --adapter "
                f"{artifact.ref}` makes",
            )
        return cls(base_of(artifact), lora, adapters is not None)

    def beside(self, base: Stored, adapters: Stored) -> ShapedSource:
        """The weights of both."""
        if self.trained_on:
            return Stored({**with_head(base, adapters).files, **adapters.files})
        return MergedWeights(base, adapters, add_lora(self.lora).scale)

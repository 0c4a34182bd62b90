"""The weights of a checkpoint, for a model that begins with them."""

from __future__ import annotations

from bc2.errors import DataError
from bc2.model.adapters import AddAdapters
from bc2.model.model_config import ModelConfig
from bc2.model.store import CONFIG, check_shapes, load_config, weight_files
from bc2.parallel.agreement import fail_together
from bc2.parallel.build import StartWeights
from bc2.parallel.file_check import check_files_together
from bc2.parallel.mesh import Mesh
from bc2.parallel.state import Stored
from bc2.registry import Artifact


def open_start_weights(
    artifact: Artifact,
    config: ModelConfig,
    seed: int,
    mesh: Mesh | None = None,
    *,
    adapters: AddAdapters | None = None,
) -> StartWeights:
    """Open a checkpoint's weights, each file checked against its digest; nothing else is read.

    Args:
        config: of the model that is filled. Its head alone may be another one.
        seed: such a head is drawn from it.
        mesh: the ranks. Each checks some of the files; all of them call this.
        adapters: those of the model that is filled, which are drawn from the seed.

    Raises:
        DataError: the artifact holds no weights.
        IntegrityError: a file is not what was published, or not what the artifact's own
            configuration says; on every rank alike.
        RecipeError: the weights do not fit the model; on every rank alike.
    """
    ranks = (mesh or Mesh()).side
    names = weight_files(artifact.files())
    check_files_together(artifact, ranks, only={CONFIG, *names})
    with fail_together(ranks):
        if not names:
            raise DataError("it holds no weights to start from", where=artifact.title)
        stored = Stored.open([artifact.path / name for name in names])
        check_shapes(stored.shapes, load_config(artifact.path), artifact.title)
        return StartWeights(config, stored, seed, adapters)

"""Adapters as an artifact: a checkpoint of the role "adapter", and the base that it is beside.

Its ``model.safetensors`` has the adapters' matrices alone, under the names that they have in a
model, and its ``model.json`` the shape of the whole model. A head of values, which is trained with
them, is there too: the base has another one, or that one before it was trained. ``adapter.json``
says what the matrices are and which base they were trained beside. PEFT's two files hold the same
for other tools.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from bc2.errors import DataError, IntegrityError, RefError
from bc2.files import canonical_json, write_durably
from bc2.model.lora_config import LoraConfig
from bc2.recipe import Settings

if TYPE_CHECKING:
    import torch

    from bc2.model.store import OpenedWeights
    from bc2.model.transformer import Transformer
    from bc2.registry import Artifact, Registry

#: The head of a model that gives values: see `bc2.model.heads`.
SCORE = "score.weight"

#: In an artifact that holds adapters alone.
ADAPTER_FILE = "adapter.json"


class SavedAdapter(Settings):
    """What ``adapter.json`` says."""

    base: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The full digest of the checkpoint whose weights the adapters stand beside."""
    lora: LoraConfig

    @classmethod
    def of(cls, artifact: Artifact) -> SavedAdapter:
        """What an artifact says of its adapters.

        Raises:
            DataError: it has adapters of a kind that bc2 does not load.
            IntegrityError: its file is not what was published, or not readable.
        """
        if ADAPTER_FILE not in artifact.files():
            raise DataError(
                f"{artifact.title} holds adapters and no {ADAPTER_FILE}, which says what they are",
                where=str(artifact.path),
                todo="name an adapter that bc2 trained with `lora`",
            )
        path = artifact.file(ADAPTER_FILE)
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "document"
            raise IntegrityError(f"{key}: {first['msg']}", where=str(path)) from None

    def to_bytes(self) -> bytes:
        return f"{canonical_json(self.model_dump(mode='json'))}\n".encode()


def holds_adapters(artifact: Artifact) -> bool:
    """Whether an artifact holds adapters without the model that they are beside."""
    return artifact.role == "adapter"


def base_of(adapter: Artifact, registry: Registry | None = None) -> Artifact:
    """The model that an adapter was trained beside.

    Args:
        registry: where it is looked up; None: the one of this user.

    Raises:
        RefError: it is not registered here.
        DataError, IntegrityError: see `SavedAdapter.of`.
    """
    from bc2.registry import Registry

    digest = SavedAdapter.of(adapter).base
    registry = registry or Registry.open()
    try:
        return registry.get(digest)
    except RefError:
        raise RefError(
            f"{adapter.title} is an adapter, and the model that it is beside, "
            f"{digest[:16]}, is not registered here",
            where=str(registry.home),
            todo="import that model as it was, or take a merged one (`bc2 merge`)",
        ) from None


def add_adapters(
    model: Transformer,
    folder: Path,
    lora: LoraConfig,
    device: str | torch.device,
    dtype: torch.dtype | None,
    *,
    opened: OpenedWeights | None = None,
) -> None:
    """Put the adapters of a checkpoint's folder beside the weights of a model, and its head there.

    Args:
        device: where they go.
        dtype: their dtype; as stored if None.
        opened: see `bc2.model.store.load_weights`.

    Raises:
        IntegrityError: they are not those of `lora`, or a file is broken.
    """
    import torch

    from bc2.model.adapters import is_adapters
    from bc2.model.lora import add_lora
    from bc2.model.store import load_weights

    with torch.device("meta"):
        add_lora(lora)(model)
    expected = {
        name: tuple(one.shape)
        for name, one in model.named_parameters()
        if is_adapters(name) or name == SCORE
    }
    tensors = load_weights(folder, expected, device, dtype, opened=opened)
    model.load_state_dict(tensors, strict=False, assign=True)


def write_adapter(folder: Path, lora: LoraConfig, base: Artifact) -> None:
    """Write what says what the adapters in a checkpoint's folder are; all else is there already.

    Args:
        folder: has ``model.safetensors`` with the adapters and ``model.json``.
        base: what the run began with: the model, or an adapter of it that was trained on.
    """
    from bc2.model.peft_layout import write_peft

    root = base_of(base) if holds_adapters(base) else base
    write_durably(folder / ADAPTER_FILE, SavedAdapter(base=root.digest, lora=lora).to_bytes())
    write_peft(folder, lora, root)

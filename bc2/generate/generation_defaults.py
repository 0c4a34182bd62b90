"""How a model wants to be sampled: ``generation.json`` beside its weights.

An imported model brings these settings along, as transformers' ``generation_config.json`` has them.
Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from bc2.errors import DataError
from bc2.files import canonical_json
from bc2.recipe import Settings

if TYPE_CHECKING:
    from bc2.registry import Artifact

#: In a checkpoint that has such settings.
GENERATION_FILE = "generation.json"


class GenerationDefaults(Settings):
    """Settings where a person says nothing; None: the model says nothing either.

    See `bc2.generate.sampling_config.SamplingConfig`, which has the meaning of each.
    """

    temperature: float | None = Field(default=None, ge=0)
    """0 is greedy: ``do_sample: false`` in transformers."""

    top_k: int | None = Field(default=None, ge=0)
    """Likeliest tokens that are kept; 0 keeps all."""

    top_p: float | None = Field(default=None, gt=0, le=1)
    """Probability of the likeliest tokens that are kept."""

    min_p: float | None = Field(default=None, ge=0, le=1)
    """Least probability of a kept token, as a share of the likeliest one's."""

    repetition_penalty: float | None = Field(default=None, gt=0)
    """What logits of tokens that were there are divided by."""

    max_new_tokens: int | None = Field(default=None, gt=0)
    """Most tokens that are added to a prompt."""

    end_ids: tuple[int, ...] = ()
    """Tokens that end an answer, beside the tokenizer's end of text."""

    @classmethod
    def of(cls, artifact: Artifact) -> GenerationDefaults:
        """The settings of a checkpoint; empty ones if it has none.

        Raises:
            DataError: its file is damaged, or has settings that bc2 does not know.
            IntegrityError: its file is not what was published.
        """
        if GENERATION_FILE not in artifact.files():
            return cls()
        path = artifact.file(GENERATION_FILE)
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            said = f"{key}: {first['msg'].lower()}" if key else first["msg"].lower()
            raise DataError(
                f"not the generation settings of a model: {said}",
                where=str(path),
                todo="import the model again with this version of bc2",
            ) from None

    def sampling(self) -> dict[str, Any]:
        """Those settings that the model has, for `SamplingConfig`; `end_ids` are not among them."""
        return self.model_dump(exclude_none=True, exclude={"end_ids"})

    def to_bytes(self) -> bytes:
        """What the file holds: canonical JSON of what is set."""
        ends = {"end_ids": list(self.end_ids)} if self.end_ids else {}
        return canonical_json({**self.sampling(), **ends}).encode()

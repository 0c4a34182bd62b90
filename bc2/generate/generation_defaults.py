"""``generation.json``: how the answers of a model are drawn unless told otherwise."""

from __future__ import annotations

from pydantic import Field, ValidationError

from bc2.errors import IntegrityError
from bc2.files import canonical_json
from bc2.recipe import Settings
from bc2.registry import Artifact

GENERATION_FILE = "generation.json"


class GenerationDefaults(Settings):
    """Settings of sampling that travel with a model; None where it has none."""

    temperature: float | None = Field(None, ge=0)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    max_new_tokens: int | None = Field(None, gt=0)
    end_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, artifact: Artifact) -> GenerationDefaults:
        if GENERATION_FILE not in artifact.files():
            return cls()
        path = artifact.file(GENERATION_FILE)
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise IntegrityError(error.errors()[0]["msg"], where=str(path)) from error

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json", exclude_defaults=True)).encode()

"""What all named origins of data have in common, whatever is read from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from bc2.files import LONGEST_NAME
from bc2.recipe import KEYED_UNLESS_DEFAULT, UNKEYED, Settings
from bc2.text_encoding import UTF8, named_encoding

if TYPE_CHECKING:
    from bc2.data.documents import SourceFile


class OriginConfig(Settings):
    """One named origin: files, a Hugging Face dataset, or what the environment brings."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)
    """Name of the source, by which weights and reports know it."""

    path: str | None = Field(None, min_length=1, json_schema_extra=UNKEYED)
    """A file, a directory (all files below it) or a glob, relative to the working directory; or
    the same at an address that fsspec knows, such as s3://bucket/web/*.jsonl.zst.

    Not keyed: the files' names and digests are."""

    hf: str | None = Field(None, min_length=1)
    """A Hugging Face dataset, by name on the hub or as a local directory; streamed."""

    hf_config: str | None = None
    """Configuration of the Hugging Face dataset, where it has several."""

    split: str = "train"
    """Split of the Hugging Face dataset."""

    revision: str | None = None
    """Commit, tag or branch of the Hugging Face dataset; the newest commit if none."""

    environment: str | None = None
    """What Python, its installed packages or the `quickstart` extra bring, by name."""

    lang: str | None = None
    """Language of the text: a tag such as zh, en-US or code-python; recorded."""

    encoding: str = Field(UTF8, json_schema_extra=KEYED_UNLESS_DEFAULT)
    """Encoding of its text files and JSON lines, such as gb18030, big5, cp932 or utf-16; decoded
    strictly. Parquet, Hugging Face datasets and `environment` are in UTF-8."""

    licence: str | None = None
    """Licence of the text; recorded."""

    include: tuple[str, ...] = ()
    """Globs on file names relative to the path: take only these, if any are given."""

    exclude: tuple[str, ...] = ()
    """Globs on file names relative to the path: leave these out."""

    _known_encoding = field_validator("encoding")(named_encoding)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [key for key in ("path", "hf", "environment") if getattr(self, key) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise ValueError(
                f"source {self.name!r} needs exactly one of path, hf, environment; got {got}"
            )
        if self.hf is None and (self.hf_config or self.revision or self.split != "train"):
            raise ValueError(f"source {self.name!r}: hf_config, split and revision belong to hf")
        if self.hf is not None and (self.include or self.exclude):
            raise ValueError(f"source {self.name!r}: include and exclude choose files, not hf rows")
        if self.path is None and self.encoding != UTF8:
            raise ValueError(f"source {self.name!r}: encoding belongs to the files of a path")
        return self

    def environment_files(self) -> list[SourceFile]:
        """The files of what `environment` names."""
        raise NotImplementedError


class Sourced(Protocol):
    """A section that has sources."""

    @property
    def sources(self) -> Sequence[OriginConfig]:
        """Its sources, in their order."""


Origin = TypeVar("Origin", bound=OriginConfig)


def check_distinct_names(sources: tuple[Origin, ...]) -> tuple[Origin, ...]:
    """`sources` themselves. Raises: ValueError if two have one name, in any case of letters."""
    # Names are directories, and some file systems ignore case.
    counts = Counter(source.name.casefold() for source in sources)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"two sources are named {twice[0]!r}")
    return sources

"""Options of commands that let a model speak, so that they look and act alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from bc2.errors import UsageError
from bc2.generate.model_settings import DEFAULTS

if TYPE_CHECKING:
    from bc2.recipe import Settings

    S = TypeVar("S", bound=Settings)


def _option(name: str, help: str, **bounds: Any) -> Any:
    """An option whose default may be the model's own."""
    return typer.Option(help=help, show_default=str(DEFAULTS[name]), **bounds)


MaxNewTokens = Annotated[int | None, _option("max_new_tokens", "Most tokens to add.", min=1)]
Temperature = Annotated[float | None, _option("temperature", "0 is greedy.", min=0)]
TopK = Annotated[int | None, _option("top_k", "Keep the k likeliest; 0 keeps all.", min=0)]
TopP = Annotated[float | None, _option("top_p", "Keep the likeliest that sum to this.")]
MinP = Annotated[
    float | None, _option("min_p", "Keep those this many times as likely as the likeliest.")
]
RepetitionPenalty = Annotated[
    float | None,
    _option("repetition_penalty", "Above 1, tokens that were there become less likely."),
]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends it; repeatable.")]
StopId = Annotated[
    list[int] | None, typer.Option(help="Token that ends it, beside the end of text.")
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after it.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of sampling.")]
CacheMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="For keys and values: '2 GiB'; half of what is free."),
]
MaxRunning = Annotated[int, typer.Option(min=1, help="Most that decode together.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="auto, fp32 or bf16.")]


def settings_of(cls: type[S], **values: Any) -> S:
    """Settings that options give.

    Raises:
        UsageError: one of them is impossible; it names the option.
    """
    from pydantic import ValidationError  # takes long to import

    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{option}: {first['msg'].lower()}, not {first['input']}") from None

"""Command-line options that several verbs share, so that they look and act alike."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from bc2.errors import UsageError
from bc2.files import check_replaceable
from bc2.user_paths import expand_user

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the refs on stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override section.key=value; repeatable."),
]


def refuse_overrides(overrides: list[str] | None, option: str) -> None:
    """With an option that reads no recipe an override reaches nothing.

    Raises:
        UsageError: there is one.
    """
    if overrides:
        raise UsageError(f"--set reaches nothing with {option}", todo="leave one of them out")


def _recipe_names(incomplete: str) -> list[str]:
    """For the shell: recipes that bc2 ships, and TOML files and folders that begin so."""
    from bc2.recipe import shipped

    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    near = [path for path in folder.glob("*") if path.is_dir() or path.suffix == ".toml"]
    paths = [f"{path}/" if path.is_dir() else str(path) for path in sorted(near)]
    return [name for name in [*shipped(), *paths] if name.startswith(incomplete)]


RecipeArg = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A path, or a shipped name.", autocompletion=_recipe_names
    ),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Do it again even if it is registered or half done.")
]


NProc = Annotated[int, typer.Option("--nproc", min=1, help="Ranks to start on this machine.")]
NNodes = Annotated[str, typer.Option("--nnodes", help="Machines: 2, or 2:4 for at least 2.")]
NodeRank = Annotated[int | None, typer.Option("--node-rank", min=0, help="Which machine this is.")]
Rendezvous = Annotated[
    str | None, typer.Option("--rendezvous", metavar="HOST:PORT", help="Of the first machine.")
]
RendezvousTimeout = Annotated[
    int,
    typer.Option(
        "--rendezvous-timeout", min=1, metavar="SECONDS", help="How long to wait for all ranks."
    ),
]
MaxRestarts = Annotated[
    int, typer.Option("--max-restarts", min=0, help="Start failed ranks again so often.")
]


_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([KMGT])(i?)B|B)?")


def parse_bytes(text: str, option: str) -> int:
    """A size such as ``2 GiB`` (2³⁰ bytes each), ``500 MB`` (10⁶ bytes each) or ``1000000``.

    Raises:
        UsageError: it is none; or no byte.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} cannot read {text!r}", todo="write a size such as '2 GiB'")
    unit = ("KMGT".index(match[2]) + 1) if match[2] else 0
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** unit)
    if not size:
        raise UsageError(f"{option}: a size of at least one byte is needed, not {text!r}")
    return size


def output_file(path: Path, option: str) -> Path:
    """The absolute path of a file that a command writes at its end, found to be writable now.

    Raises:
        UsageError: a directory or a device has the name, it cannot be a file's, or its directory
            is not there or cannot be written.
    """
    path = expand_user(path, option).absolute()
    if os.path.isdir(path):  # it does not raise, whatever the name
        raise UsageError(f"{option} is a directory", where=str(path), todo="name a file")
    if os.path.exists(path) and not path.is_file():
        raise UsageError(f"{option} is not a file to write to", where=str(path), todo="name a file")
    if not os.path.isdir(path.parent):
        raise UsageError(
            f"no such directory for {option}", where=str(path.parent), todo="make it first"
        )
    try:
        check_replaceable(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(
            f"{option} cannot be written: {reason}", where=str(path), todo="name another file"
        ) from None
    return path


class _Verb(typer.Typer):
    """Gives its commands paths without ``~``: a shell leaves it in ``--out=~/x`` and in quotes."""

    def command(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        decorate = super().command(*args, **kwargs)

        def register(function: Any) -> Any:
            decorate(_expanding(function))
            return function

        return register


def _expanding(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def command(**values: Any) -> Any:
        return function(**{name: _expanded(name, value) for name, value in values.items()})

    return command


def _expanded(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(name, one) for one in value]
    return expand_user(value, name.replace("_", "-")) if isinstance(value, Path) else value


def verb() -> typer.Typer:
    """The Typer app of a verb's module: plain help, no completion, our own errors."""
    return _Verb(
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["--help", "-h"]},
    )

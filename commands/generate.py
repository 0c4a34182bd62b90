"""`bc2 generate [REF] PROMPT...`: continue prompts with a trained model."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bc2.console import Output, note
from bc2.errors import DataError, UsageError
from bc2.options import Json, Quiet, verb
from bc2.registry import Artifact, Registry, Role

if TYPE_CHECKING:
    from bc2.generate.load import LanguageModel
    from bc2.generate.requests import Continuation
    from bc2.generate.sampling_config import SamplingConfig

app = verb()

#: Roles of the checkpoints that continue text by themselves.
_ROLES: tuple[Role, ...] = ("base", "chat", "merged")


@app.command(no_args_is_help=True)
def generate(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REF] PROMPT...", help="A checkpoint, and what to continue."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Prompts: a line each, or JSON lines with a `prompt` key."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to add.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
    top_k: Annotated[int, typer.Option(min=0, help="Keep the k likeliest; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest that sum to this.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends it; repeatable.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue each prompt. With a single word it is the prompt, and the newest model is taken.

    On a terminal one prompt is shown as it grows; --quiet prints the continuations alone.
    """
    from bc2.generate.engine import InferenceEngine
    from bc2.generate.load import open_model
    from bc2.generate.requests import Request
    from bc2.generate.sampling_config import SamplingConfig
    from bc2.generate.text import TextStream

    ref, prompts = _split(words or [], file)
    settings = _settings(
        SamplingConfig, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
        top_p=top_p, seed=seed, stop=tuple(stop or ()),
    )  # fmt: skip
    where, dtype = _placed(device, precision)
    with open_model(_artifact(ref), where, dtype) as loaded:
        ids = [loaded.tokenizer.encode(prompt) for prompt in prompts]
        live = len(prompts) == 1 and sys.stdout.isatty() and not json
        stream = TextStream(loaded.tokenizer.decode_bytes, settings.stop)
        if live and not quiet:
            print(prompts[0], end="", flush=True)
        engine = InferenceEngine(
            loaded.model,
            eos_id=loaded.tokenizer.eos_id,
            decode_bytes=loaded.tokenizer.decode_bytes,
        )
        requests = [Request(prompt, settings) for prompt in ids]
        answers = engine.generate(
            requests, on_token=(lambda _, __, token: _show(stream.push(token))) if live else None
        )
        made = [answer.continuations[0] for answer in answers]
        if live:
            print(stream.finish())
        else:
            _emit(loaded, prompts, made, Output.of(json=json, quiet=quiet))


def _split(words: list[str], file: Path | None) -> tuple[str | None, list[str]]:
    """The ref and the prompts among the arguments."""
    if file is not None:
        if len(words) > 1:
            raise UsageError("prompts come from --file or from the command line, not from both")
        return (words[0] if words else None), list(_read(file))
    if not words:
        raise UsageError("nothing to continue", todo="give a prompt, or --file")
    return (words[0], words[1:]) if len(words) > 1 else (None, words)


def _read(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", where=str(file)) from None
    # Not splitlines(): JSON may hold U+2028 and its like.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError("no prompt in the file", where=str(file))
    if file.suffix != ".jsonl":
        return [line.rstrip("\r") for _, line in lines]
    return [_prompt_of(line, f"{file}:{number}") for number, line in lines]


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = json_module.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise DataError("not an object with a `prompt` string", where=where)
    return prompt


def _settings(cls: type[SamplingConfig], **values: Any) -> SamplingConfig:
    from pydantic import ValidationError

    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{option}: {first['msg'].lower()}, not {first['input']}") from None


def _placed(device: str, precision: str) -> tuple[Any, Any]:
    from bc2.train.device import DTYPES, pick_device, pick_precision

    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"no such precision: {precision}", todo="auto, fp32 or bf16")
    where = pick_device(device)
    # On a CPU one token at a time is bound by memory either way, and fp32 is exact.
    wanted = "fp32" if precision == "auto" and where.type == "cpu" else precision
    return where, DTYPES[pick_precision(wanted, where)]


def _artifact(ref: str | None) -> Artifact:
    registry = Registry.open()
    if ref is not None:
        return registry.resolve(ref, "checkpoint", _ROLES)
    newest = registry.newest("checkpoint", _ROLES)
    note(f"taking the newest model, {newest.title} ({newest.ref})")
    return newest


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _emit(
    loaded: LanguageModel, prompts: list[str], made: list[Continuation], output: Output
) -> None:
    texts = [(g.data or b"").decode("utf-8", "replace") for g in made]
    rows = [
        {"prompt": p, "text": t, "tokens": len(g.ids), "finish_reason": g.finish_reason}
        for p, t, g in zip(prompts, texts, made, strict=True)
    ]
    whole = "\n".join(p + t for p, t in zip(prompts, texts, strict=True))
    output.emit({"model": loaded.artifact.ref, "results": rows}, table=whole, quiet=texts)

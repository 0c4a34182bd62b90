"""`bc2 serve [REF...]`: answer requests over HTTP as OpenAI's server does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bc2.console import Output, emit_line, note, warn
from bc2.errors import UsageError
from bc2.generate.command_options import Device, Precision
from bc2.options import Json, parse_bytes, verb
from bc2.registry import Registry

app = verb()

#: Seconds; clocks of the operating system do not count to infinity.
_YEAR = 365 * 86400.0


@app.command(no_args_is_help=False)
def serve(
    refs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAME=]REF]...",
            help="Checkpoints and adapters; the newest model if none. Clients call them by NAME.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 is all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keys that clients must send, a line each.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The variable that has the key.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Whose web pages may ask; repeatable; * is all."),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Answers that may wait for each model; more get a 429.")
    ] = 256,
    max_running: Annotated[int, typer.Option(min=1, help="Answers that decode together.")] = 256,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="Of a request.")] = "4 MiB",
    time_limit: Annotated[
        float, typer.Option(min=0.001, max=_YEAR, metavar="SECONDS", help="Of a request.")
    ] = 600.0,
    grace: Annotated[
        float,
        typer.Option(
            min=0, max=_YEAR, metavar="SECONDS", help="For running requests after a signal."
        ),
    ] = 30.0,
    cache_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="For keys and values of all models together."),
    ] = None,
    step_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most tokens of a forward pass; 2048 on a GPU and 512 on a CPU by default."
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="A line for each, without what was said.")
    ] = False,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="And what was said.")] = False,
    json: Json = False,
) -> None:
    """Serve models to OpenAI's clients: completions, chats, scores, tokens.

    Prints its address on stdout as soon as it takes requests. Ctrl-C or SIGTERM ends it: it takes
    no more requests, finishes those that run within --grace, and exits with 0.
    """
    from bc2.generate.engine_config import EngineConfig
    from bc2.serve.serve_config import ServeConfig

    config = ServeConfig(
        max_waiting=max_waiting,
        max_body=_body_bytes(max_body),
        time_limit=time_limit,
        grace=grace,
        api_keys=_api_keys(api_key_file, api_key_env),
        origins=tuple(map(_origin, allow_origin or ())),
        log_requests=log_requests,
        log_prompts=log_prompts,
    )
    memory = parse_bytes(cache_memory, "--cache-memory") if cache_memory is not None else None

    from bc2.serve.served_models import named_artifacts, open_models
    from bc2.serve.server import bound_socket, serve, url_of
    from bc2.train.device import DTYPES, pick_device, pick_inference_precision

    where = pick_device(device)
    dtype = DTYPES[pick_inference_precision(precision, where)]
    engine = EngineConfig(
        cache_bytes=memory,
        max_running=max_running,
        step_tokens=step_tokens or (512 if where.type == "cpu" else 2048),
    )
    artifacts = named_artifacts(Registry.open(), refs or ())
    bound = bound_socket(host, port)
    if not config.api_keys and not host.startswith("127.") and host not in ("localhost", "::1"):
        warn(f"anybody who reaches {host} may ask: give --api-key-file or --api-key-env")

    with bound, open_models(artifacts, where, dtype, engine) as models:

        def ready() -> None:
            url = url_of(bound)
            note(f"serving {', '.join(models.by_name)} on {where}; Ctrl-C ends it")
            if json:
                emit_line({"url": url, "models": list(models.by_name)})
            else:
                Output().emit(None, table=url)

        serve(models, config, bound, ready)


def _body_bytes(text: str) -> int:
    size, most = parse_bytes(text, "--max-body"), 1 << 28
    if size > most:
        raise UsageError(f"--max-body {text} is more than 256 MiB", todo="give less")
    return size


def _origin(text: str) -> str:
    """An origin as browsers write it, without a path."""
    scheme, mark, rest = text.partition("://")
    if text != "*" and (scheme not in ("http", "https") or not mark or not rest or "/" in rest):
        raise UsageError(
            f"--allow-origin: {text!r} is no origin", todo="write it as http://localhost:3000"
        )
    return text


def _api_keys(file: Path | None, variable: str | None) -> tuple[str, ...]:
    """The keys of a file, or of a variable. They are never shown."""
    if file is not None and variable is not None:
        raise UsageError("keys come from --api-key-file or from --api-key-env, not from both")
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise UsageError(f"the keys cannot be read: {reason}", where=str(file)) from None
        keys, where = [line.strip() for line in lines if line.strip()], str(file)
    elif variable is not None:
        value = os.environ.get(variable, "").strip()
        keys, where = [value] if value else [], f"${variable}"
    else:
        return ()
    if not keys:
        raise UsageError(
            "no key is there", where=where, todo="put one there, or leave the option out"
        )
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise UsageError(
            "a key has other characters than printable ASCII", where=where, todo="make another one"
        )
    return tuple(keys)

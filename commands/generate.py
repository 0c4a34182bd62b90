"""`bc2 generate [REF] PROMPT...`: continue prompts with a trained model."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bc2.console import Output, check_output, note
from bc2.errors import UsageError
from bc2.generate.command_options import (
    CacheMemory,
    Device,
    IgnoreEos,
    MaxNewTokens,
    MaxRunning,
    MinP,
    Precision,
    RepetitionPenalty,
    Seed,
    Stop,
    StopId,
    Temperature,
    TopK,
    TopP,
    settings_of,
)
from bc2.generate.model_settings import DEFAULTS, own_end_ids, own_settings, told
from bc2.options import Json, Quiet, parse_bytes, verb
from bc2.registry import Registry

if TYPE_CHECKING:
    from bc2.generate.engine import InferenceEngine
    from bc2.generate.live import DecodeBytes
    from bc2.generate.load import LanguageModel
    from bc2.generate.prompts import Prompt, PromptRequest

app = verb()


@app.command(no_args_is_help=True)
def generate(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REF] PROMPT...", help="A checkpoint, and what to continue."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="Prompts: a line each, or JSON lines with a `prompt` key; - is stdin."
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer prompts, or `messages`, in the model's layout.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --chat: a system message before them.")
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Continuations of each prompt.")] = 1,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    stop_id: StopId = None,
    ignore_eos: IgnoreEos = False,
    seed: Seed = 0,
    logprobs: Annotated[
        int | None,
        typer.Option(metavar="K", help="Log-probabilities of the tokens, and of the K likeliest."),
    ] = None,
    cache_memory: CacheMemory = None,
    max_running: MaxRunning = 256,
    device: Device = "auto",
    precision: Precision = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.jsonl", help="Write JSON lines there.")
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print a JSON object a line, as results come.")
    ] = False,
    as_completed: Annotated[
        bool, typer.Option("--as-completed", help="JSON lines in the order of completion.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue each prompt. With a single word it is the prompt, and the newest model is taken.

    What no option says is the model's own, where it was imported with such settings.

    On a terminal one prompt is shown as it grows; --quiet prints the continuations alone.
    """
    from bc2.generate.engine_config import EngineConfig
    from bc2.generate.sampling_config import SamplingConfig
    from bc2.report.answer_delivery import deliver
    from bc2.report.result_file import ResultFile

    _check_formats(json=json, jsonl=jsonl, quiet=quiet, as_completed=as_completed, out=out)
    if system is not None and not chat:
        raise UsageError("--system is a message of a chat", todo="add --chat")
    asked = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    settings = settings_of(
        SamplingConfig, **{**DEFAULTS, **given}, n=n, seed=seed, stop=tuple(stop or ()),
        logprobs=logprobs,
    )  # fmt: skip
    memory = parse_bytes(cache_memory, "--cache-memory") if cache_memory is not None else None
    config = settings_of(EngineConfig, cache_bytes=memory, max_running=max_running)
    if out is not None and file is not None and out.resolve() == file.resolve():
        raise UsageError("the results would replace the prompts", where=str(out))
    ref, prompts, live = _split(words or [], file, chat=chat)
    results = ResultFile(out) if out is not None else None

    from bc2.generate.chosen_model import chosen_model
    from bc2.generate.conversations import Conversations
    from bc2.generate.engine import InferenceEngine
    from bc2.generate.generation_defaults import GenerationDefaults
    from bc2.generate.load import open_model
    from bc2.generate.prompts import prompt_requests
    from bc2.tokenizer.chat_file import chat_of, check_has_layout
    from bc2.train.device import DTYPES, pick_device, pick_inference_precision

    where = pick_device(device)
    dtype = DTYPES[pick_inference_precision(precision, where)]
    artifact = chosen_model(Registry.open(), ref)
    if chat:
        check_has_layout(artifact)
    own = GenerationDefaults.of(artifact)
    with open_model(artifact, where, dtype) as loaded:
        tokenizer = loaded.tokenizer
        layout = chat_of(artifact, tokenizer) if chat else None
        ends = () if ignore_eos else own_end_ids(tokenizer, layout, own, artifact)
        taken = own_settings(own, given)
        if said := told(taken, own, ends):
            note(f"settings of {artifact.title}: {said}")
        ends = tuple(dict.fromkeys([*ends, *(stop_id or [])]))
        settings = settings.model_copy(update={**taken, "stop_ids": ends})
        decode = layout.generated_bytes if layout is not None else tokenizer.generated_bytes
        engine = InferenceEngine(loaded.model, config, eos_id=tokenizer.eos_id, decode_bytes=decode)
        window = loaded.model.config.context_length
        talk = Conversations(layout, window, system) if layout is not None else None
        requests = prompt_requests(prompts, tokenizer, settings, talk)
        output = Output.of(json=json, quiet=quiet)
        plain = not (json or jsonl or out)
        if plain and live and n == 1 and sys.stdout.isatty():
            _stream(engine, next(requests), loaded, decode, quiet=quiet)
            return
        answers = engine.generate(requests, in_order=not as_completed)
        deliver(answers, loaded, output, jsonl=jsonl, results=results)


def _check_formats(
    *, json: bool, jsonl: bool, quiet: bool, as_completed: bool, out: Path | None
) -> None:
    if jsonl and (json or quiet):
        raise UsageError("--jsonl goes neither with --json nor with --quiet", todo="give one")
    if as_completed and not jsonl and out is None:
        raise UsageError(
            "--as-completed is for JSON lines, which number the prompts",
            todo="add --jsonl or --out FILE.jsonl",
        )


def _split(
    words: list[str], file: Path | None, *, chat: bool
) -> tuple[str | None, Iterator[Prompt], bool]:
    """The ref and the prompts among the arguments, and whether it is a single prompt."""
    from bc2.generate.prompts import Prompt, read_prompts

    if file is not None:
        if len(words) > 1:
            raise UsageError("prompts come from --file or from the command line, not from both")
        prompts = read_prompts(file, chat=chat)
        # What is wrong with its beginning is said before the model is loaded.
        first = next(prompts)
        return (words[0] if words else None), itertools.chain([first], prompts), False
    if not words:
        raise UsageError("nothing to continue", todo="give a prompt, or --file")
    ref, texts = (words[0], words[1:]) if len(words) > 1 else (None, words)
    return ref, map(Prompt, texts), len(texts) == 1


def _stream(
    engine: InferenceEngine, request: PromptRequest, loaded: LanguageModel, decode: DecodeBytes,
    *, quiet: bool,
) -> None:  # fmt: skip
    """Show one continuation as it grows."""
    from bc2.generate.text import TextStream
    from bc2.report.continuations import log_prob_tables, shown_prompt

    stream = TextStream(decode, request.settings.stop)
    _show("" if quiet else shown_prompt(request))
    answers = engine.generate([request], on_token=lambda _, __, token: _show(stream.push(token)))
    (made,) = next(answers).continuations
    _show(stream.finish() + "\n")
    for drawn in [] if quiet else log_prob_tables(made, loaded.tokenizer):
        Output().emit(None, table=drawn)


def _show(text: str) -> None:
    print(text, end="", flush=True)
    check_output()

"""`bc2 chat [REF]`: a conversation with a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bc2.console import note
from bc2.errors import UsageError
from bc2.generate.command_options import (
    CacheMemory,
    Device,
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
from bc2.generate.model_settings import LONGEST_ANSWER, chat_settings, own_end_ids, told
from bc2.options import parse_bytes, verb
from bc2.registry import Registry

app = verb()


@app.command()
def chat(
    ref: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="A checkpoint; else the newest.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A system message before all others.")
    ] = None,
    load: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on with what /save has written.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens of an answer.",
            show_default=f"half the window, at most {LONGEST_ANSWER:,}",
        ),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    stop_id: StopId = None,
    seed: Seed = 0,
    cache_memory: CacheMemory = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Annotated[
        bool, typer.Option("--json", help="Read lines, and print a JSON object for each answer.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No greeting, which says the settings too.")
    ] = False,
) -> None:
    """Talk with a model. At a terminal /help lists the commands, and Ctrl-D ends it.

    Where stdin is no terminal each line is a message, and nothing in it a command.

    What no option says is the model's own, where it has such settings; else its layout's.
    """
    from bc2.generate.chosen_model import chosen_model
    from bc2.generate.engine_config import EngineConfig
    from bc2.generate.generation_defaults import GenerationDefaults
    from bc2.generate.sampling_config import SamplingConfig
    from bc2.tokenizer.chat_file import chat_of, check_has_layout

    asked = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    settings = settings_of(SamplingConfig, **given, seed=seed, stop=tuple(stop or ()))
    if "" in settings.stop:
        raise UsageError("a stop text is empty", where="--stop", todo="leave it out")
    memory = parse_bytes(cache_memory, "--cache-memory") if cache_memory is not None else None
    # One answer at a time; all the rest of the cache is for what was said before.
    config = settings_of(EngineConfig, cache_bytes=memory, max_running=1, idle_share=1.0)

    from bc2.chat.dialogue import Dialogue
    from bc2.chat.piped import answer_lines
    from bc2.chat.saved import read_saved
    from bc2.chat.shown import resume
    from bc2.chat.speaker import Speaker
    from bc2.chat.talk import Talk
    from bc2.chat.terminal import Terminal
    from bc2.generate.engine import InferenceEngine
    from bc2.generate.load import open_model
    from bc2.train.device import DTYPES, pick_device, pick_inference_precision

    where = pick_device(device)
    dtype = DTYPES[pick_inference_precision(precision, where)]
    artifact = chosen_model(Registry.open(), ref)
    check_has_layout(artifact)
    own = GenerationDefaults.of(artifact)
    saved = read_saved(load) if load is not None else None
    with open_model(artifact, where, dtype) as loaded:
        tokenizer, window = loaded.tokenizer, loaded.model.config.context_length
        layout = chat_of(artifact, tokenizer)
        ends = own_end_ids(tokenizer, layout, own, artifact)
        defaults = chat_settings(own, layout, window)
        taken = {name: value for name, value in defaults.items() if name not in given}
        _check_ids(stop_id or [], tokenizer.vocab_size)
        ids = tuple(dict.fromkeys([*ends, *(stop_id or [])]))
        settings = settings.model_copy(update={**taken, "stop_ids": ids})
        engine = InferenceEngine(
            loaded.model, config, eos_id=tokenizer.eos_id, decode_bytes=layout.generated_bytes
        )
        with engine.open() as session:
            speaker = Speaker(session, layout.generated_bytes)
            talk = Talk(Dialogue(layout, window, system), speaker, settings, artifact)
            if saved is not None:
                resume(talk, saved)
                talk.set_params(given)
            if json or not sys.stdin.isatty():
                answer_lines(talk, json=json)
                return
            if not quiet:
                note(f"{artifact.title}, {layout.name}, a window of {window:,} tokens")
                note(f"settings: {told(talk.params, own, ends)}")
                note("/help lists commands, Ctrl-D ends")
            Terminal(talk).run()


def _check_ids(stop_ids: list[int], pieces: int) -> None:
    wrong = next((token for token in stop_ids if not 0 <= token < pieces), None)
    if wrong is not None:
        raise UsageError(f"stop id {wrong} is outside the vocabulary of {pieces:,} pieces")

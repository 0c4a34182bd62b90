"""What makes a model speak: its tokenizer, its chat layout, and how its answers are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bc2.console import warn
from bc2.convert.importing.model_folder import CONFIG, ModelFolder
from bc2.errors import Bc2Error, DataError
from bc2.generate.generation_defaults import GENERATION_FILE, GenerationDefaults
from bc2.model.model_config import ModelConfig
from bc2.tokenizer.chat import Chat
from bc2.tokenizer.chat_file import chat_bytes, chat_named
from bc2.tokenizer.chat_layouts import LAYOUTS
from bc2.tokenizer.layout import ASSISTANT_ID, USER_ID
from bc2.tokenizer.round_trip import lost_sentence
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import CHAT_FILE, JSON_FILE, MODEL_FILE

_TOKENIZER_CONFIG = "tokenizer_config.json"
_GENERATION_CONFIG = "generation_config.json"
_TEMPLATE = "chat_template.jinja"

#: Says that a model has no chat layout, whatever its files say.
NO_LAYOUT = "none"

#: Files that a tokenizer, a layout or settings are read from, where they are there.
FILES = (
    JSON_FILE, MODEL_FILE, _TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json",
    _GENERATION_CONFIG, _TEMPLATE,
)  # fmt: skip

#: Settings of a ``generation_config.json`` that have the same name and meaning here.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_ALWAYS = ("repetition_penalty", "max_new_tokens")

#: Settings that change what is drawn, and that bc2 has not got, with the values that do nothing.
_NOT_HERE: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "no_repeat_ngram_size": (0,), "bad_words_ids": ([],),
    "suppress_tokens": ([],), "begin_suppress_tokens": ([],), "sequence_bias": ({},),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "min_length": (0,),
    "min_new_tokens": (0,), "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,),
    "penalty_alpha": (0.0,), "guidance_scale": (1.0,), "encoder_repetition_penalty": (1.0,),
    "exponential_decay_length_penalty": (),
}  # fmt: skip


@dataclass(frozen=True)
class Speech:
    """A model's tokenizer, chat layout and settings, as bc2 keeps them."""

    tokenizer: Tokenizer
    chat: Chat | None
    defaults: GenerationDefaults

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer, and the layout beside it."""
        layout = {CHAT_FILE: chat_bytes(self.chat)} if self.chat is not None else {}
        return {self.tokenizer.file_name: self.tokenizer.model, **layout}

    @property
    def files(self) -> dict[str, bytes]:
        """Everything, as it lies beside the weights."""
        if self.defaults == GenerationDefaults():
            return self.tokenizer_files
        return {**self.tokenizer_files, GENERATION_FILE: self.defaults.to_bytes()}


def read_speech(
    folder: ModelFolder, config: ModelConfig, family: str, layout: str | None
) -> Speech:
    """Read what a model's folder says of its tokens.

    Args:
        family: of the model, see `bc2.convert.families`.
        layout: a chat layout by its name, or `NO_LAYOUT`; None: as the folder says.

    Raises:
        DataError: there is no tokenizer, or one that does not fit the model or its settings.
    """
    settings = folder.optional_json(_TOKENIZER_CONFIG)
    tokenizer = _tokenizer(folder, settings, family)
    generation = _generation(folder, tokenizer)
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, and the model's table "
            f"{config.vocab_size:,} rows",
            where=str(folder.path),
            todo="take the tokenizer that the model was trained with",
        )
    names = _special_names(folder, settings)
    return Speech(
        tokenizer,
        _chat(folder, tokenizer, settings, generation, names, layout),
        _defaults(folder, tokenizer, generation, names.get("eos_token"), config.context_length),
    )


def _tokenizer(folder: ModelFolder, settings: Mapping[str, Any], family: str) -> Tokenizer:
    """The tokenizer; of two files the one that transformers reads."""
    name = next((name for name in (JSON_FILE, MODEL_FILE) if folder.has(name)), None)
    if name is None:
        raise DataError(
            f"no tokenizer: neither {JSON_FILE} nor {MODEL_FILE}",
            where=str(folder.path),
            todo="fetch it too; of vocab.json and merges.txt alone transformers makes a "
            f"{JSON_FILE}: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    try:
        tokenizer = Tokenizer(folder.bytes(name))
    except DataError as error:
        raise DataError(error.what, where=str(folder.path / name), todo=error.todo) from None
    if name == MODEL_FILE:
        _check_added(folder, tokenizer)
    else:
        _check_added_to_json(folder, tokenizer, settings)
    _check_beginning(folder, tokenizer, settings, family)
    if tokenizer.lost:
        warn(f"{lost_sentence(tokenizer.lost)} ({name})")
    return tokenizer


def _check_added(folder: ModelFolder, tokenizer: Tokenizer) -> None:
    """Tokens beside a tokenizer.model are not in it. Those of ids behind the table are never used.

    Baichuan's own file names one such, ``<pad>`` = 125,696.
    """
    for name, token in folder.optional_json("added_tokens.json").items():
        if isinstance(token, int) and name != "<pad>" and not tokenizer.has(token):
            raise DataError(
                f"the added token {name!r} (id {token}) is not in {MODEL_FILE}",
                where=str(folder.path / "added_tokens.json"),
                todo=f"save the tokenizer with transformers, so that it has a {JSON_FILE}",
            )


def _check_added_to_json(
    folder: ModelFolder, tokenizer: Tokenizer, settings: Mapping[str, Any]
) -> None:
    """Tokens that transformers adds to a tokenizer.json from files beside it must be in it."""
    decoder = settings.get("added_tokens_decoder")
    added: list[Any] = list(decoder.values()) if isinstance(decoder, dict) else []
    named: dict[str, list[Any]] = {
        _TOKENIZER_CONFIG: [one.get("content") for one in added if isinstance(one, dict)],
        "added_tokens.json": list(folder.optional_json("added_tokens.json")),
    }
    known = tokenizer.special_ids.keys() | tokenizer.added_ids.keys()
    for file, names in named.items():
        for name in names:
            if isinstance(name, str) and name not in known:
                raise DataError(
                    f"the added token {name!r} is not in {JSON_FILE}",
                    where=str(folder.path / file),
                    todo=f"save the tokenizer with transformers, so that its {JSON_FILE} has it",
                )


def _check_beginning(
    folder: ModelFolder, tokenizer: Tokenizer, settings: Mapping[str, Any], family: str
) -> None:
    """What is put before a text must be what bc2 puts there."""
    where = str(folder.path / _TOKENIZER_CONFIG)
    if settings.get("add_eos_token") is True:
        raise DataError("add_eos_token = true is not supported", where=where)
    begins = settings.get("add_bos_token")
    if begins is None and tokenizer.file_name == MODEL_FILE:
        begins = family != "baichuan"  # the libraries' own default; Baichuan's has none in training
    if begins is not None and begins is not bool(tokenizer.begin_ids):
        said = "a beginning" if begins else "no beginning"
        raise DataError(
            f"texts have {said} by add_bos_token, and not by {tokenizer.file_name}",
            where=where,
            todo=f"save the tokenizer with transformers: its {JSON_FILE} then says the same",
        )


def _special_names(folder: ModelFolder, settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by their use, such as ``eos_token``."""
    found = {}
    for source in (folder.optional_json("special_tokens_map.json"), settings):
        for name, value in source.items():
            if isinstance(value, dict):
                value = value.get("content")
            if name.endswith("_token") and isinstance(value, str):
                found[name] = value
    return found


# -- chat -----------------------------------------------------------------------------------


def _chat(
    folder: ModelFolder,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    generation: Mapping[str, Any],
    names: Mapping[str, str],
    layout: str | None,
) -> Chat | None:
    if layout is not None:
        return None if layout == NO_LAYOUT else chat_named(layout, tokenizer)
    template = _template(folder, settings)
    try:
        if template is not None:
            if (known := _known(template, tokenizer)) is not None:
                return known
            from bc2.tokenizer.chat_template import TemplateChat

            return TemplateChat(template, tokenizer, names)
        if "user_token_id" in generation or "assistant_token_id" in generation:
            return _baichuan_chat(tokenizer, generation)
    except Bc2Error as error:
        warn(f"no chat layout: {error}. --chat-layout NAME gives it one")
    return None


def _template(folder: ModelFolder, settings: Mapping[str, Any]) -> str | None:
    """The model's Jinja template; of several the one that is called default."""
    if folder.has(_TEMPLATE):
        try:
            return folder.bytes(_TEMPLATE).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8: {error}", where=str(folder.path / _TEMPLATE)) from None
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = next(
            (
                one.get("template")
                for one in found
                if isinstance(one, dict) and one.get("name") == "default"
            ),
            None,
        )
    return found if isinstance(found, str) else None


def _known(template: str, tokenizer: Tokenizer) -> Chat | None:
    """The layout that bc2 writes a template of when it exports a model; None of another one."""
    for name in LAYOUTS:
        with suppress(DataError):  # of a layout whose tokens are not there it wrote none
            chat = chat_named(name, tokenizer)
            if chat.template == template:
                return chat
    return None


def _baichuan_chat(tokenizer: Tokenizer, generation: Mapping[str, Any]) -> Chat:
    """Baichuan says its turns' markers where it says how to draw."""
    ids = generation.get("user_token_id"), generation.get("assistant_token_id")
    if ids != (USER_ID, ASSISTANT_ID):
        raise DataError(f"turns marked by the ids {ids}, not by {USER_ID} and {ASSISTANT_ID}")
    return chat_named("baichuan", tokenizer)


# -- drawing --------------------------------------------------------------------------------


def _generation(folder: ModelFolder, tokenizer: Tokenizer) -> Mapping[str, Any]:
    """How to draw; where no file says it the ends of config.json, as in transformers."""
    if folder.has(_GENERATION_CONFIG):
        return folder.json(_GENERATION_CONFIG)
    found = folder.optional_json(CONFIG).get("eos_token_id")
    ends = found if isinstance(found, list) else [found]
    return {"eos_token_id": [one for one in ends if type(one) is int and tokenizer.has(one)]}


def _defaults(
    folder: ModelFolder,
    tokenizer: Tokenizer,
    generation: Mapping[str, Any],
    end: str | None,
    window: int,
) -> GenerationDefaults:
    where = str(folder.path / _GENERATION_CONFIG)
    for name, neutral in _NOT_HERE.items():
        value = generation.get(name)
        if value is not None and value not in neutral:
            warn(f"{name} = {value!r} in {_GENERATION_CONFIG} has no effect here")
    names = list(_ALWAYS)
    sampled = generation.get("do_sample")
    if sampled is True:
        names += _SAMPLING
    found = {name: generation[name] for name in names if generation.get(name) is not None}
    if sampled is False:
        found["temperature"] = 0.0
    longest = found.get("max_new_tokens")
    if isinstance(longest, int) and longest >= window:
        del found["max_new_tokens"]
        warn(f"answers of {longest:,} tokens leave nothing of a window of {window:,}: not kept")
    ends = generation.get("eos_token_id")
    ids = list(ends) if isinstance(ends, list) else [] if ends is None else [ends]
    if end is not None and end in tokenizer.special_ids:
        ids.append(tokenizer.special_ids[end])
    for token in ids:
        if type(token) is not int or not tokenizer.has(token):
            raise DataError(f"eos_token_id {token} is no token of the tokenizer", where=where)
    try:
        return GenerationDefaults(
            **found,
            end_ids=tuple(dict.fromkeys(one for one in ids if one != tokenizer.eos_id)),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}, not {first['input']!r}",
            where=where,
        ) from None

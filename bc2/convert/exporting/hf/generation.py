"""Which tokens end an answer, and how answers are drawn, as transformers is told of it."""

from __future__ import annotations

import json
from typing import Any

from bc2.convert.exporting.hf.special_tokens import special_tokens
from bc2.convert.exporting.source_model import SourceModel


def special_ids(source: SourceModel) -> dict[str, Any]:
    """The ids that ``config.json`` and ``generation_config.json`` name; null for those not there.

    What ends an answer of the chat layout is among the ends, or nothing would stop one.
    """
    tokenizer, names = source.tokenizer, special_tokens(source)
    begin, end, pad = (
        tokenizer.special_ids.get(names[use] or "", -1)
        for use in ("bos_token", "eos_token", "pad_token")
    )
    layout = source.chat.end_ids if source.chat else ()
    ends = dict.fromkeys([tokenizer.eos_id, *source.generation.end_ids, end, *layout])
    known = [one for one in ends if one >= 0]
    return {
        "bos_token_id": begin if begin >= 0 else None,
        "eos_token_id": (known[0] if len(known) == 1 else known) if known else None,
        "pad_token_id": pad if pad >= 0 else None,
    }


def generation_config(source: SourceModel) -> bytes:
    """``generation_config.json``: `special_ids`, and how the model wants to be sampled.

    transformers draws nothing unless ``do_sample`` is true, and warns of settings for drawing
    beside a false one.
    """
    data = special_ids(source)
    sampling = source.generation.sampling()
    for name in ("repetition_penalty", "max_new_tokens"):
        if name in sampling:
            data[name] = sampling.pop(name)
    if sampling.get("temperature") == 0:
        data["do_sample"] = False
    elif sampling:
        data |= {"do_sample": True, **sampling}
    return f"{json.dumps(data, indent=2)}\n".encode()

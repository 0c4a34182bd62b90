"""The process that one model is computed in; started by `bc2.convert.proof.worker`.

stdin: a line of JSON that says which engine and what it loads, then a line for each question.
stdout: a line of JSON for each answer, the first when the model is loaded. Large answers lie in
files. The end of stdin means that nobody asks any more.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO, cast

import numpy as np

from bc2.convert.proof.consumer import ComputedModel, Consumer, ScoringModel
from bc2.errors import Bc2Error


def load(asked: dict[str, Any]) -> ComputedModel | ScoringModel:
    """The engine that is asked for, with its model."""
    if asked["engine"] == "transformers" and asked["scores"]:
        from bc2.convert.proof.transformers_scores import TransformersScores

        return TransformersScores(asked["folder"], remote_code=asked["remote_code"])
    if asked["engine"] == "transformers":
        from bc2.convert.proof.transformers_model import TransformersModel

        return TransformersModel(asked["folder"], remote_code=asked["remote_code"])
    from bc2.convert.proof.our_model import OurModel, OurScores, Rounding

    rounding = Rounding.from_json(asked["rounding"])
    return OurModel(rounding) if rounding.config().head == "language" else OurScores(rounding)


def answer(model: ComputedModel | ScoringModel, asked: dict[str, Any]) -> Any:
    """What a method of the engine says."""
    if asked["method"] == "scores":
        return cast("ScoringModel", model).scores(asked["texts"], asked["padding"])
    model = cast("ComputedModel", model)
    if asked["method"] == "log_probs":
        np.save(asked["file"], model.log_probs(asked["ids"]))
        return None
    if asked["method"] == "greedy":
        return model.greedy(asked["ids"], asked["count"])
    consumer = cast("Consumer", model)
    if asked["method"] == "encode":
        return consumer.encode(asked["texts"])
    return consumer.chat(asked["messages"], generation_prompt=asked["generation_prompt"])


def serve(questions: TextIO, answers: TextIO) -> None:
    """Load, then answer until nobody asks."""

    def say(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        model = load(json.loads(questions.readline()))
        say({"name": model.name, "version": model.version})
        for line in questions:
            say({"answer": answer(model, json.loads(line))})
    except Exception as error:
        # An error of a library that was given our files is an answer too: it does not read them.
        known = isinstance(error, Bc2Error)
        say({"error": str(error) if known else f"{type(error).__name__}: {error}"})


def main() -> None:
    """What libraries print goes to stderr, so that it does not get among the answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()

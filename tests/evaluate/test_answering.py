"""Answers are the engine's, whatever they are asked with and wherever it was interrupted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.errors import RunFailed
from bc2.evaluate.answer_journal import Answered, AnswerJournal, units_of
from bc2.evaluate.answering import Answerer, disjoint_windows
from bc2.evaluate.eval_settings import EvalSettings
from bc2.evaluate.generation_settings import Generation, generation_of
from bc2.evaluate.prompts import GROUP, Kind, Prompt, PromptFile, TaskPrompts, write_prompts
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Request, ScoreRequest
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

V, WINDOW, EOS = 61, 24, 2
BAD = 60

SETTINGS = EvalSettings(suite="made", shots=0, seed=5, data="d", harness="h", prompts_version=1)


def make_model(*, poisoned: bool = False) -> Transformer:
    config = ModelConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2,
        context_length=WINDOW, initializer_range=0.5,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(1))
    if poisoned:
        with torch.no_grad():
            model.model.embed_tokens.weight[BAD] = math.nan
    return model.requires_grad_(False).eval()


def make_engine(*, poisoned: bool = False, **config: Any) -> InferenceEngine:
    made = EngineConfig(cache_bytes=1 << 20, block_tokens=4, **config)
    return InferenceEngine(
        make_model(poisoned=poisoned), made, eos_id=EOS, decode_bytes=lambda ids: bytes(ids)
    )


def ids_of(*seed: int, size: int) -> list[int]:
    draw = torch.Generator().manual_seed(hash(seed) & 0xFFFFFFFF)
    return torch.randint(3, V - 1, (size,), generator=draw).tolist()


class Stored:
    """Prompts of a task in a file, and an answerer of them."""

    def __init__(self, folder: Path, kind: Kind, prompts: Sequence[Prompt], task: str = "made"):
        self.folder, self.prompts = folder, list(prompts)
        self.task = TaskPrompts(task, kind, len(self.prompts), {"until": ["\x07"]})
        folder.mkdir(exist_ok=True)
        write_prompts(folder / f"{task}.parquet", self.prompts)
        self.file = PromptFile(folder / f"{task}.parquet")

    def answerer(self, engine: InferenceEngine, claims: str = "c") -> Answerer:
        journal = AnswerJournal(self.folder / "work", claims)
        return Answerer(engine, SETTINGS, journal, WINDOW, EOS)

    def answers(self, task: TaskPrompts | None = None) -> dict[int, Answered]:
        task = task or self.task
        journal = AnswerJournal(self.folder / "work", "reading")
        return {doc: one for unit in units_of(task) for doc, one in journal.read(unit).items()}


def choice(number: int, size: int = 9) -> Prompt:
    context = ids_of(7, size=12) + ids_of(number, size=size)
    asked = [(0, ids_of(number, at, size=1 + at)) for at in range(3)]
    return Prompt(number, "d" * 64, 1, [context], asked)


def scored(engine: InferenceEngine, prompts: Sequence[Prompt]) -> Iterator[Any]:
    requests = [
        ScoreRequest(one.contexts[at], ids) for one in prompts for at, ids in one.asked
    ]  # fmt: skip
    return engine.score(requests, cut=True)


def test_scores_are_the_engines(tmp_path: Path) -> None:
    prompts = [choice(number, size=number % 14) for number in range(GROUP + 3)]
    stored = Stored(tmp_path, "score", prompts)
    told: list[tuple[int, bool]] = []
    answerer = stored.answerer(make_engine())
    answerer.advance = lambda *samples: told.append(samples)
    answerer.score(stored.task, stored.file)
    answerer.score(stored.task, stored.file)
    assert told == [(GROUP, True), (3, True), (GROUP, False), (3, False)]
    found = stored.answers()
    parts = [prompts[:GROUP], prompts[GROUP:]]
    scores = [score for part in parts for score in scored(make_engine(), part)]
    answers = [answer for prompt in prompts for answer in found[prompt.doc_id].answers]
    assert [one.log_prob for one in answers] == [score.total for score in scores]
    assert [one.greedy for one in answers] == [score.all_greedy for score in scores]
    cuts = [one.cut for one in answers]
    assert cuts == [score.cut for score in scores]
    assert set(cuts) == {0, 1, 2, 3}
    assert {one.text for one in answers} == {None}


def test_what_is_answered_or_taken_is_left(tmp_path: Path) -> None:
    stored = Stored(tmp_path, "score", [choice(number) for number in range(2 * GROUP + 1)])
    units = list(units_of(stored.task))
    first = stored.answerer(make_engine())
    first.journal.write(units[0], [Answered(doc, ()) for doc in range(GROUP)])
    assert first.journal.claim(units[1])
    first.score(stored.task, stored.file)
    found = stored.answers()
    assert sorted(found) == [*range(GROUP), 2 * GROUP]
    assert found[0].answers == ()
    stored.answerer(make_engine(), "d").score(stored.task, stored.file)
    assert len(stored.answers()) == 2 * GROUP + 1


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 9), max_size=40), window=st.integers(1, 12))
def test_windows_are_lm_evals(ids: list[int], window: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    theirs = map(make_disjoint_window, get_rolling_token_windows(ids, EOS, window, 1))
    assert [(list(a), list(b)) for a, b in disjoint_windows(ids, window, EOS)] == list(theirs)


def test_whole_texts_are_totals_of_their_windows(tmp_path: Path) -> None:
    sizes = [1, WINDOW, WINDOW + 1, 3 * WINDOW - 5]
    prompts = [
        Prompt(at, "d" * 64, 0, [()], [(0, ids_of(at, size=size))]) for at, size in enumerate(sizes)
    ]
    stored = Stored(tmp_path, "rolling", prompts)
    stored.answerer(make_engine()).score(stored.task, stored.file)
    model = make_model()
    for prompt in prompts:
        ids = [EOS, *prompt.asked[0][1]]
        expected = 0.0
        for end in range(1, len(ids)):
            # Each token after those before it in its window.
            last = (len(ids) - 2) // WINDOW
            at = (end - 1) // WINDOW
            begin = len(ids) - 1 - WINDOW if at == last and at else at * WINDOW
            text = torch.tensor(ids[begin:end])
            cu_seqlens = torch.tensor([0, len(text)], dtype=torch.int32)
            logits = model.logits(model(text, cu_seqlens, len(text)))[-1]
            expected += float(logits.double().log_softmax(-1)[ids[end]])
        (answer,) = stored.answers()[prompt.doc_id].answers
        assert answer.log_prob == pytest.approx(expected, abs=1e-3)
        assert (answer.cut, answer.greedy) == (0, None)


def test_a_failing_sample_is_named(tmp_path: Path) -> None:
    prompts = [choice(number) for number in range(40)]
    bad = dataclasses.replace(prompts[23], contexts=[[*prompts[23].contexts[0][:-1], BAD]])
    prompts[23] = bad
    stored = Stored(tmp_path, "score", prompts)
    with pytest.raises(RunFailed, match="not numbers") as info:
        stored.answerer(make_engine(poisoned=True)).score(stored.task, stored.file)
    assert info.value.where == "made:23"
    assert stored.answers() == {}


# -- generation ----------------------------------------------------------------------------


def question(number: int) -> Prompt:
    return Prompt(number, "d" * 64, 1, [ids_of(number, size=1 + number * 5 % 30)], [(0, ())])


def generation(temperature: float = 0.0, samples: int = 1, tokens: int = 9) -> Generation:
    given = {"until": ["\x07"], "max_gen_toks": tokens}
    tokenizer: Any = SimpleNamespace(eos_id=EOS, piece_of=lambda token: "</s>")
    return generation_of(given, WINDOW, tokenizer, samples=samples, temperature=temperature)


@pytest.mark.parametrize(("temperature", "samples"), [(0.0, 1), (1.0, 3)])
def test_a_text_depends_on_its_sample_alone(
    tmp_path: Path, temperature: float, samples: int
) -> None:
    """Not on what else is asked, on the order, on units, or on where it was interrupted."""
    prompts = [question(number) for number in range(41)]
    how = generation(temperature, samples)
    alone: dict[int, Answered] = {}
    for number in (0, 3, 17, 40):
        one = Stored(tmp_path / f"one{number}", "generate", prompts[: number + 1])
        journal = AnswerJournal(tmp_path / f"one{number}" / "work", "c")
        for unit in units_of(one.task):
            with journal.appending(unit) as append:
                for doc in range(unit.first, min(unit.last, number)):
                    append(Answered(doc, ()))
        one.answerer(make_engine()).generate([(one.task, one.file)], {"made": how})
        alone[number] = one.answers()[number]

    stored = Stored(tmp_path / "all", "generate", prompts)
    other = Stored(tmp_path / "all", "generate", prompts[:5], "other")
    engine = make_engine(max_running=7)
    asked = [(other.task, other.file), (stored.task, stored.file)]
    answerer = stored.answerer(engine)
    left = iter(range(12))

    def interrupt(samples: int, now: bool) -> None:
        if now and next(left, None) is None:
            raise KeyboardInterrupt

    answerer.advance = interrupt
    with pytest.raises(KeyboardInterrupt):
        answerer.generate(asked, {"made": how, "other": how})
    some = stored.answers()
    assert 0 < len(some) < len(prompts)
    told = {True: 0, False: 0}

    def count(samples: int, now: bool) -> None:
        told[now] += samples

    again = stored.answerer(make_engine(max_running=3), "d")
    again.advance = count
    again.generate(asked, {"made": how, "other": how})
    before = 5 + 41 - told[True]
    assert (told[False], before) == (13, 13), "what was answered is asked again"
    found = stored.answers()
    assert sorted(found) == list(range(41))
    assert some.items() <= found.items()
    assert {number: found[number] for number in alone} == alone
    texts = [[answer.text for answer in one.answers] for one in found.values()]
    assert {len(one) for one in texts} == {samples}
    assert len({text for one in texts for text in one}) > 10
    if temperature:  # another task has other numbers
        assert stored.answers(other.task)[3].answers != found[3].answers
        assert any(len(set(one)) > 1 for one in texts)


def test_texts_are_the_engines_and_counted(tmp_path: Path) -> None:
    prompts = [question(number) for number in range(30)]
    stored = Stored(tmp_path, "generate", prompts)
    stored.answerer(make_engine()).generate([(stored.task, stored.file)], {"made": generation()})
    found = stored.answers()
    cuts = [max(0, len(one.contexts[0]) - (WINDOW - 9)) for one in prompts]
    assert min(cuts) == 0 < max(cuts)
    requests = [
        Request(list(one.contexts[0])[cut:], generation().sampling)
        for one, cut in zip(prompts, cuts, strict=True)
    ]
    endings = set()
    for prompt, cut, made in zip(prompts, cuts, make_engine().generate(requests), strict=True):
        (answer,) = found[prompt.doc_id].answers
        (text,) = made.continuations
        assert text.data is not None
        assert answer.text == text.data.decode("utf-8", "replace")
        assert (answer.cut, answer.new_tokens) == (cut, len(text.ids))
        assert answer.met_limit == (text.finish_reason == "length")
        endings.add(text.finish_reason)
    assert endings >= {"length", "stop"}


def test_a_prompt_without_tokens_follows_the_end_of_a_text(tmp_path: Path) -> None:
    prompts = [Prompt(0, "d" * 64, 0, [[]], [(0, ())]), Prompt(1, "d" * 64, 0, [[EOS]], [(0, ())])]
    stored = Stored(tmp_path, "generate", prompts)
    stored.answerer(make_engine()).generate([(stored.task, stored.file)], {"made": generation()})
    found = stored.answers()
    assert found[0].answers == found[1].answers


def test_a_failing_text_is_named(tmp_path: Path) -> None:
    """Of many that are answered at once, as few as can be are asked again."""
    prompts = [question(number) for number in range(30)]
    prompts[21] = Prompt(21, "d" * 64, 1, [[5, BAD, 5]], [(0, ())])
    stored = Stored(tmp_path, "generate", prompts)
    engine = make_engine(poisoned=True)
    calls = []
    generate = engine.generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return generate(*args, **kwargs)

    engine.generate = counted  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match="not numbers") as info:
        stored.answerer(engine).generate([(stored.task, stored.file)], {"made": generation()})
    assert info.value.where == "made:21"
    assert len(calls) <= 7


def test_few_requests_are_held_at_a_time(tmp_path: Path) -> None:
    """Prompts are read as there is room for them."""
    stored = Stored(tmp_path, "generate", [question(number % 9) for number in range(120)])
    answerer = stored.answerer(make_engine(max_running=4))
    read = done = most = 0

    class Counting:
        def read(self, first: int, last: int) -> list[Prompt]:
            nonlocal read
            read = last
            return stored.file.read(first, last)

    def advance(samples: int, now: bool) -> None:
        nonlocal done, most
        done += samples
        most = max(most, read - done)

    answerer.advance = advance
    counting: Any = Counting()
    answerer.generate([(stored.task, counting)], {"made": generation()})
    assert done == 120
    assert most < 48

"""Scores and answers of bc2 are those of lm-eval's own `hf` model with the same weights.

The window is so small that some prompts are cut and others are not.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval_peer.answers import Answers, answers_of
from lm_eval_peer.reference import HUMANEVAL, AskedTask, index_of, load_tasks, run_tasks
from lm_eval_peer.rows import Splits

from bc2.evaluate.evaluation import EvalRequest, Evaluation
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.suite_prompts import SuiteRows
from bc2.files import sha256_json
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Continuation, Request, ScoreRequest
from bc2.generate.sampling_config import SamplingConfig
from bc2.harness.release import Release
from bc2.harness.suites import suite_of
from bc2.model.head_loss import head_loss
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Draft, Registry
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TOKENIZER_FILE, TokenizerConfig
from bc2.tokenizer.train import train

SHAPE = ModelConfig(
    vocab_size=800, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4,
    context_length=320, initializer_range=0.1,
)  # fmt: skip

#: HFLM's own default, which a task without `max_gen_toks` gets.
MAX_GEN_TOKS = 256

#: New tokens in the task of code, for which the window is too small for lm-eval's 1,024.
HUMANEVAL_TOKENS = 100

PLACES = ("valley", "harbour", "orchard", "old mill by the river", "school", "market", "island")
THINGS = ("apples", "boats", "lamps", "books", "chairs", "fish", "coats", "bells", "kites", "cups")
COUNT = 10


def mmlu(number: int) -> dict[str, Any]:
    """Short and long questions: some prompts are longer than the window."""
    thing, other = THINGS[number], THINGS[number - 3]
    detail = f" In the {PLACES[number % 7]} they keep {thing} beside the {other}." * number
    return {
        "question": f" Where are the {thing} number {number}?{detail} ",
        "choices": [f"in the {PLACES[(number + n) % 7]}" for n in range(4)],
        "answer": number % 7 % 4,
    }


def cmmlu(number: int) -> dict[str, Any]:
    crops = ("小麦", "水稻", "玉米", "大豆", "棉花")
    detail = "".join(f"，{n}月看{crops[n * number % 5]}" for n in range(1, 2 * number))
    row = {"Question": f"第{number}块田里种的是什么{detail}"}
    row |= {letter: crops[(number + n) % 5] for n, letter in enumerate("ABCD")}
    return {**row, "Answer": "ABCD"[number % 5 % 4]}


def gsm8k(number: int) -> dict[str, Any]:
    thing, more = THINGS[number], number + 3
    return {
        "question": f"Ann has {number} {thing} and buys {more}. How many {thing} has she?",
        "answer": f"{number} + {more} = <<{number}+{more}={number + more}>>\n#### {number + more}",
    }


def humaneval(number: int) -> dict[str, Any]:
    name = f"count_{THINGS[number]}"
    examples = "".join(f"    >>> {name}({n})\n    {n + number}\n" for n in range(3 * number))
    return {
        "task_id": f"Made/{number}",
        "prompt": f'def {name}(n: int) -> int:\n    """Add {number}.\n{examples}    """\n',
        "canonical_solution": f"    return n + {number}\n",
        "test": f"def check(f):\n    assert f(1) == {number + 1}\n",
        "entry_point": name,
    }


def made_rows(path: str, name: str | None) -> Splits:
    """Invented rows in the form that each dataset has on the hub."""
    one: Any = {
        "cais/mmlu": mmlu, "haonan-li/cmmlu": cmmlu, "openai/gsm8k": gsm8k,
        "openai/openai_humaneval": humaneval,
    }[path]  # fmt: skip
    test = [one(number) for number in range(COUNT)]
    shots = [one(COUNT - 1 - number) for number in range(COUNT)]
    return {"test": test, "dev": shots[5:], "train": shots}


MULTIPLE_CHOICE = ("mmlu_anatomy", "cmmlu_agronomy")


def humaneval_of(tokens: int) -> dict[str, Any]:
    """lm-eval's task with another limit of new tokens."""
    return HUMANEVAL | {
        "generation_kwargs": HUMANEVAL["generation_kwargs"] | {"max_gen_toks": tokens}
    }


ASKED = [
    AskedTask("mmlu_anatomy", 2),
    AskedTask("cmmlu_agronomy", 5),
    AskedTask("gsm8k", 8),
    AskedTask(humaneval_of(HUMANEVAL_TOKENS)),
]


def texts() -> Iterator[str]:
    """What the tokenizer and the model are trained on: all rows as prompts with answers."""
    for number in range(COUNT):
        row = mmlu(number)
        listed = "\n".join(f"{a}. {text}" for a, text in zip("ABCD", row["choices"], strict=True))
        yield f"{row['question'].strip()}\n{listed}\nAnswer: {'ABCD'[row['answer']]}\n\n"
    for number in range(COUNT):
        row = cmmlu(number)
        listed = "\n".join(f"{letter}. {row[letter]}" for letter in "ABCD")
        yield f"{row['Question']}\n{listed}\n答案： {row['Answer']}\n\n"
    for number in range(COUNT):
        row = gsm8k(number)
        yield f"Question: {row['question']}\nAnswer: {row['answer']}\n\n"
    for number in range(COUNT):
        row = humaneval(number)
        yield f"{row['prompt']}{row['canonical_solution']}\n\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = TokenizerConfig(vocab_size=SHAPE.vocab_size, character_coverage=1.0)
    return Tokenizer.from_bytes(train(texts(), config).model)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    """Trained until it repeats what stands between questions, so that answers meet stop texts."""
    model = Transformer(SHAPE)
    model.init_weights(torch.Generator().manual_seed(3))
    ends = itertools.cycle([[], [tokenizer.eos_id]])
    documents = [tokenizer.encode(text) + next(ends) for text in texts()]
    stream = torch.tensor(list(itertools.chain(*documents)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(4)
    size, rows = 128, 4
    cu_seqlens = torch.arange(0, (rows + 1) * size, size, dtype=torch.int32)
    for _ in range(300):
        starts = torch.randint(len(stream) - size - 1, (rows,), generator=draw)
        at = (starts[:, None] + torch.arange(size)).flatten()
        hidden = model(stream[at], cu_seqlens, size)
        loss = head_loss(hidden, model.lm_head.weight, stream[at + 1], z_weight=0.0).loss_sum
        (loss / len(at)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def lm(model: Transformer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lm_eval_peer.hf_model import TimedHFLM, load_llama

    folder = tmp_path_factory.mktemp("weights")
    save_model(folder, SHAPE, model.state_dict())
    return TimedHFLM(load_llama(folder), tokenizer, batch_size=4)


@pytest.fixture(scope="module")
def expected(lm: Any) -> Answers:
    """The peer's answers, with the ``requests`` that its tasks made."""
    manager = index_of("mmlu/default", "cmmlu", "gsm8k")
    samples = run_tasks(lm, load_tasks(ASKED, manager, made_rows), None)
    asked = {(t, row["doc_id"]): row["arguments"] for t, rows in samples.items() for row in rows}
    return {
        task: [answer | {"requests": asked[task, answer["doc_id"]]} for answer in found]
        for task, found in answers_of(samples).items()
    }


@pytest.fixture(scope="module")
def engine(model: Transformer, tokenizer: Tokenizer) -> InferenceEngine:
    return InferenceEngine(
        model, EngineConfig(cache_bytes=2**24), eos_id=tokenizer.eos_id,
        decode_bytes=tokenizer.decode_bytes, poison=True,
    )  # fmt: skip


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> ScoreRequest:
    """As lm-eval's `_encode_pair`: spaces at the end of a context belong to the continuation."""
    kept = context.rstrip()
    whole = tokenizer.encode(context + continuation)
    size = len(tokenizer.encode(kept))
    return ScoreRequest(whole[:size], whole[size:])


@pytest.mark.parametrize("task", MULTIPLE_CHOICE)
def test_scores(task: str, expected: Any, engine: InferenceEngine, tokenizer: Tokenizer) -> None:
    samples = expected[task]
    assert [sample["doc_id"] for sample in samples] == list(range(COUNT))
    requests = [encode_pair(tokenizer, *pair) for sample in samples for pair in sample["requests"]]
    scores = list(engine.score(requests, cut=True))
    cuts = [score.cut for score in scores]
    assert 0 in cuts
    assert any(cuts)
    for sample in samples:
        mine = [scores.pop(0) for _ in sample["lls"]]
        totals = [score.total for score in mine]
        assert totals == pytest.approx(sample["lls"], abs=1e-4, rel=0)
        assert [score.all_greedy for score in mine] == sample["greedy"]
        assert totals.index(max(totals)) == sample["prediction"]
    choices = [sample["prediction"] for one in MULTIPLE_CHOICE for sample in expected[one]]
    assert len(set(choices)) > 1, "too uniform to show anything"


def generated(
    samples: list[dict[str, Any]], engine: InferenceEngine, tokenizer: Tokenizer
) -> list[Continuation]:
    """What the engine writes after prompts that are cut so that all new tokens fit."""
    requests = []
    for sample in samples:
        ((prompt, kwargs),) = sample["requests"]
        new = kwargs.get("max_gen_toks", MAX_GEN_TOKS)
        stops = (*kwargs["until"], tokenizer.piece_of(tokenizer.eos_id))
        settings = SamplingConfig(temperature=0.0, max_new_tokens=new, stop=stops)
        requests.append(Request(tokenizer.encode(prompt)[new - SHAPE.context_length :], settings))
    return [answer.continuations[0] for answer in engine.generate(requests)]


@pytest.mark.parametrize("task", ["gsm8k", "humaneval"])
def test_generated_texts(
    task: str, expected: Any, engine: InferenceEngine, tokenizer: Tokenizer
) -> None:
    samples = expected[task]
    found = generated(samples, engine, tokenizer)
    for one, sample in zip(found, samples, strict=True):
        assert one.data is not None
        assert one.data.decode("utf-8", "replace") == sample["text"]
    assert len({sample["text"] for sample in samples}) > 5, "too uniform to show anything"
    sizes = [len(tokenizer.encode(sample["requests"][0][0])) for sample in samples]
    new = samples[0]["requests"][0][1].get("max_gen_toks", MAX_GEN_TOKS)
    assert max(sizes) > SHAPE.context_length - new, "no prompt was cut"


def test_answers_end_in_every_way(
    expected: Any, engine: InferenceEngine, tokenizer: Tokenizer
) -> None:
    found = generated(expected["gsm8k"] + expected["humaneval"], engine, tokenizer)
    assert {one.finish_reason for one in found} == {"stop", "stop_id", "length"}


def test_the_peer_refuses_answers_as_long_as_the_window(lm: Any) -> None:
    """So bc2, which shortens them, has nothing to be the same as there."""
    task = AskedTask(humaneval_of(SHAPE.context_length))
    tasks = load_tasks([task], index_of("gsm8k"), made_rows)
    with pytest.raises(AssertionError, match="must be less than model's maximum"):
        run_tasks(lm, tasks, 1)


#: Suites of the whole way, with the datasets that their tasks read.
SUITES = {
    "mmlu_anatomy": (2, ("cais/mmlu", "anatomy")),
    "cmmlu_agronomy": (5, ("haonan-li/cmmlu", "agronomy")),
    "gsm8k": (8, ("openai/gsm8k", "main")),
}


@pytest.fixture(scope="module")
def checkpoint(
    model: Transformer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Registry, Artifact]:
    registry = Registry(tmp_path_factory.mktemp("home"))
    draft = Draft("checkpoint", "made", "0" * 64, role="base")
    with registry.stage(draft) as staged:
        save_model(staged.path, SHAPE, model.state_dict())
        (staged.path / TOKENIZER_FILE).write_bytes(tokenizer.model)
        return registry, staged.publish()


@pytest.mark.parametrize("name", list(SUITES))
def test_evaluation_from_rows_to_samples(
    name: str,
    expected: Any,
    checkpoint: tuple[Registry, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BC2_CACHE", str(tmp_path))
    shots, dataset = SUITES[name]
    rows = {dataset: made_rows(*dataset)}
    release = Release("made", "this test", (), sha256_json(rows[dataset]), (), rows)
    registry, artifact = checkpoint
    holder = ModelHolder.on(artifact, "cpu", "fp32", EngineConfig(cache_bytes=2**24))
    evaluation = Evaluation(Session(registry), holder, EvalRequest(shots=shots))
    (scores,) = evaluation.evaluate([SuiteRows(suite_of(name), release)])
    holder.close()
    assert evaluation.failed == []
    path = scores.file(f"samples/samples_{name}.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = answers_of({name: lines})[name]
    for mine, peer in zip(found, expected[name], strict=True):
        assert mine["doc_id"] == peer["doc_id"]
        if "text" in peer:
            assert mine["text"] == peer["text"]
            continue
        assert mine["lls"] == pytest.approx(peer["lls"], abs=1e-4, rel=0)
        assert (mine["greedy"], mine["prediction"]) == (peer["greedy"], peer["prediction"])

"""A model with transformers' own tokenizer, chat template and generation settings: bc2's prompts,
scores and answers are those of lm-eval's own `hf` model, which has them from transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest
import torch
from lm_eval_peer.answers import answers_of
from lm_eval_peer.hf_model import load_llama
from lm_eval_peer.reference import AskedTask, index_of, load_tasks, run_tasks
from lm_eval_peer.tokenizing import fast_tokenizer
from made_chats import LLAMA3_TEMPLATE
from made_json_tokenizers import llama3_like

from bc2.evaluate.answer_journal import AnswerJournal, units_of
from bc2.evaluate.evaluation import EvalRequest
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.suite_prompts import SuitePrompts, SuiteRows
from bc2.evaluate.suite_run import SuiteRun
from bc2.files import sha256_json
from bc2.generate.engine_config import EngineConfig
from bc2.harness.release import Release
from bc2.harness.suites import suite_of
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
from bc2.registry import Artifact
from bc2.tokenizer.tokenizer import Tokenizer

ROWS = 4
SHOTS = 2
#: Suite -> the dataset that its task reads.
SUITES = {"mmlu_anatomy": ("cais/mmlu", "anatomy"), "gsm8k": ("openai/gsm8k", "main")}

TOKENIZER = Tokenizer.from_bytes(llama3_like())
SHAPE = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, hidden_size=32, intermediate_size=48, num_layers=2,
    num_heads=2, context_length=640, initializer_range=0.5,
)  # fmt: skip

PENALTY = 1.2
END = "e"


def made_rows(path: str, name: str | None) -> Any:
    def one(number: int) -> dict[str, Any]:
        question = f"What is {number} and {number + 1}, and then one more of these? "
        if path == "openai/gsm8k":
            return {"question": question, "answer": f"It is so.\n#### {2 * number + 1}"}
        choices = [f"{2 * number + more}" for more in range(4)]
        return {"question": question, "choices": choices, "answer": 1}

    rows = [one(number) for number in range(2 * ROWS)]
    return {"test": rows[:ROWS], "dev": rows[ROWS:], "train": rows[ROWS:]}


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(SHAPE)
    model.init_weights(torch.Generator().manual_seed(6))
    return model.eval()


@pytest.fixture(scope="module")
def end_id(model: Transformer) -> int:
    """A token that the model says now and then."""
    return TOKENIZER.encode(END)[0]


@pytest.fixture(scope="module")
def lm(model: Transformer, end_id: int, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("weights")
    save_model(folder, SHAPE, model.state_dict())
    peer = load_llama(folder)
    peer.generation_config.repetition_penalty = PENALTY
    ends = [TOKENIZER.eos_id, TOKENIZER.special_ids["<|eot_id|>"], end_id]
    peer.generation_config.eos_token_id = ends
    tokenizer = fast_tokenizer(folder, llama3_like(), LLAMA3_TEMPLATE)
    return HFLM(pretrained=peer, tokenizer=tokenizer, batch_size=2)


@pytest.fixture(scope="module")
def checkpoint(
    model: Transformer, end_id: int, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    settings = {"repetition_penalty": PENALTY, "end_ids": [end_id]}
    chat = {"layout": "jinja", "template": LLAMA3_TEMPLATE, "tokens": {}}
    files = {
        name: json.dumps(content).encode()
        for name, content in (("generation.json", settings), ("chat.json", chat))
    }
    home = tmp_path_factory.mktemp("home")
    return made_checkpoints.register(home, "made", model, tokenizer=llama3_like(), files=files)


def answered(prompts: SuitePrompts, holder: ModelHolder, work: Path) -> list[Any]:
    work.mkdir()
    journal: AnswerJournal = SuiteRun(prompts, holder).answer_all(work)
    (task,) = prompts.tasks
    found: dict[int, Any] = {}
    for unit in units_of(task):
        found |= journal.read(unit)
    return [found[number].answers for number in range(ROWS)]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("name", list(SUITES))
def test_answers_are_those_of_lm_eval(
    name: str, chat: bool, lm: Any, checkpoint: Artifact, tmp_path: Path
) -> None:
    dataset = SUITES[name]
    tasks = load_tasks([AskedTask(name, SHOTS)], index_of("mmlu/default", "gsm8k"), made_rows)
    applied = {"apply_chat_template": True, "fewshot_as_multiturn": True} if chat else {}
    expected = answers_of(run_tasks(lm, tasks, None, **applied))[name]

    rows = {dataset: made_rows(*dataset)}
    release = Release("made", "this test", (), sha256_json(rows[dataset]), (), rows)
    suite_rows = SuiteRows(suite_of(name), release)
    settings = EvalRequest(shots=SHOTS, apply_chat_template=chat).settings(suite_rows)
    holder = ModelHolder.on(checkpoint, "cpu", "fp32", EngineConfig(cache_bytes=2**24))
    if chat:
        holder.use_layout()
    prompts = SuitePrompts(suite_rows, settings, holder.tokenizer, tmp_path, holder.chat)
    found = answered(prompts, holder, tmp_path / "work")
    holder.close()
    assert len(expected) == len(found) == ROWS
    for mine, peer in zip(found, expected, strict=True):
        if name == "gsm8k":
            # lm-eval leaves out a token that ends an answer only where it is a special one.
            assert peer["text"] in (mine[0].text, mine[0].text + END)
            continue
        assert [one.log_prob for one in mine] == pytest.approx(peer["lls"], abs=1e-4, rel=0)
        assert [one.greedy for one in mine] == peer["greedy"]
    if name == "gsm8k":
        assert len({one[0].text for one in found}) == ROWS, "too uniform to show anything"
        ends = {one[0].met_limit for one in found}
        assert False in ends, "no answer met an end"

"""The tokenizer that lies beside exported weights reads and writes what ours does."""

from __future__ import annotations

import copy
import os
import pickle
import random
from pathlib import Path
from typing import Any

import made_baichuan
import made_chats
import pytest
from exported import write
from remote_code import load_tokenizer
from small_checkpoints import SMALL, checkpoint

from bc2.convert.exporting.baichuan import plan_baichuan
from bc2.model.model_config import ModelConfig
from bc2.registry import Registry
from bc2.tokenizer.chat_file import chat_named
from bc2.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("modules")

OURS = Tokenizer(made_baichuan.tokenizer_bytes())

#: Anything that a text may hold, but names that a template writes.
PIECES = [
    "the quick",
    "语言模型",
    "  ",
    " ",
    "\t\n",
    "\r\n",
    "\u2581",
    "\u2581\u2581x",
    "\x00",
    "\ufeff",
    "e\u0301",
    "\u00e9",
    "\U0001f468\u200d\U0001f469",
    "\ud800",
    "\udfff\ud83d",
    "\U00020000",
    "<0x41>",
    "<reserved_5>",
    "<control_3>",
    "12345",
    "def f(x):",
    "。",
    "\ufffd",
    "\ufffe",
    "",
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As transformers loads it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    artifact = checkpoint(Registry.open(folder / "home"), ModelConfig(**SMALL), layout="baichuan")
    write(artifact, folder / "out", plan_baichuan)
    return load_tokenizer(folder / "out")


def texts(count: int) -> list[str]:
    chance = random.Random(1)
    drawn = ["".join(chance.choices(PIECES, k=chance.randint(1, 8))) for _ in range(count)]
    return [*PIECES, *drawn]


def test_every_text_has_our_ids_and_comes_back(theirs: Any) -> None:
    for text in texts(2000):
        ids = OURS.encode(text)
        assert theirs(text)["input_ids"] == ids, ascii(text)
        assert theirs.decode(ids) == text, ascii(text)


def test_a_batch_is_padded_with_unknown(theirs: Any) -> None:
    found = theirs(["一二三四五六七八", "a"], padding=True)
    assert len({len(ids) for ids in found["input_ids"]}) == 1
    assert (theirs.pad_token, theirs.pad_token_id) == ("<unk>", 0)
    assert [sum(mask) for mask in found["attention_mask"]] == [
        len(OURS.encode("一二三四五六七八")), len(OURS.encode("a")),
    ]  # fmt: skip
    assert len(theirs) == theirs.vocab_size == OURS.vocab_size
    assert theirs.bos_token_id == OURS.bos_id
    assert theirs.eos_token_id == OURS.eos_id


def test_ids_that_stand_for_nothing(theirs: Any) -> None:
    ids = [195, *OURS.encode("hi"), 2, 50, 196]
    assert theirs.decode(ids, skip_special_tokens=True) == "hi"
    assert theirs.decode(ids).startswith("<reserved_106>hi</s>")
    half = OURS.encode("\U00020000")[:2]
    assert set(theirs.decode(half)) == {"\ufffd"}


@pytest.mark.parametrize("skip", [False, True])
def test_ids_of_no_piece(theirs: Any, skip: bool) -> None:
    """A model may have more rows than there are pieces, and then say them."""
    more = copy.deepcopy(theirs)
    ids = [*OURS.encode("hi"), OURS.vocab_size + 5, *OURS.encode(" there")]
    assert more.decode(ids, skip_special_tokens=skip) == "hi there"
    more.add_tokens(["<extra>"])
    assert more.decode(more.encode("a<extra>b"), skip_special_tokens=skip) == "a<extra>b"
    with pytest.raises(IndexError, match="-100 is below 0"):
        more.decode([-100], skip_special_tokens=skip)


def test_conversations_have_our_ids(theirs: Any) -> None:
    chat = chat_named("baichuan", OURS)
    chance = random.Random(3)
    for _ in range(200):
        messages = made_chats.conversation(chance)
        said = "".join(message["content"] for message in messages)
        if any(name in said for name in theirs.all_special_tokens):
            continue  # transformers finds them in any text
        found = theirs.apply_chat_template(messages, return_dict=False)
        assert found == chat.render(messages).ids
        if messages[-1]["role"] != "assistant":
            found = theirs.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            assert found == chat.prompt(messages)


def test_what_a_user_types_may_be_kept_text(theirs: Any) -> None:
    text = "a<reserved_106>b</s>"
    assert theirs(text)["input_ids"] != OURS.encode(text)
    assert theirs(text, split_special_tokens=True)["input_ids"] == OURS.encode(text)


def test_saved_pickled_and_loaded_again(theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == OURS.model
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(theirs))):
        for text in texts(50):
            assert again(text)["input_ids"] == theirs(text)["input_ids"]
        assert again.all_special_tokens == theirs.all_special_tokens
        assert again.chat_template == theirs.chat_template


#: Real tokenizers, kept or not exact: with a dummy prefix, without bytes.
MODELS = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "models"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["baichuan_sp", "baichuan7b_sp_rebuilt", "internlm_sp", "llama2_sp"]
)
def test_real_tokenizers(name: str, tmp_path: Path) -> None:
    path = MODELS / name / "tokenizer.model"
    if not path.exists():
        pytest.skip("needs shared/data/models, or BC2_TEST_DATA")
    ours = Tokenizer(path.read_bytes())
    config = ModelConfig(
        **{**SMALL, "vocab_size": ours.vocab_size, "hidden_size": 8, "num_heads": 2}
    )
    artifact = checkpoint(Registry.open(tmp_path / "home"), config, model=ours.model)
    write(artifact, tmp_path / "out", plan_baichuan)
    theirs = load_tokenizer(tmp_path / "out")
    assert len(theirs) == ours.vocab_size
    for text in texts(3000):
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids, ascii(text)
        assert theirs.decode(ids) == ours.decode(ids), ascii(text)

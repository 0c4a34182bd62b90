"""Models of other families are fine-tuned by their own template, as transformers writes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from made_hf_models import OfTransformers, original
from sft_runs import CHAT, conversations, obtain, write_rows

from bc2.align.samples.render_settings import RenderSettings
from bc2.align.samples.rendered_chats import rendered_chats
from bc2.align.samples.speech import chat_source
from bc2.cli import main
from bc2.convert.importing.import_model import import_model
from bc2.data.chats.chats import Chats
from bc2.registry import Registry
from bc2.tokenizer.chat_file import chat_of
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import tokenizer_path
from bc2.train.logs.log_rows import METRICS, read_rows


@pytest.mark.parametrize("name", ["qwen2", "llama3"])
def test_an_imported_model_is_tuned_and_answers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    source = original(name)
    assert isinstance(source, OfTransformers)
    source.write(tmp_path / name)
    registry = Registry.open()
    base = import_model(registry, tmp_path / name)
    text = CHAT.replace('"checkpoint/small"', f'"{base.digest[:16]}"')
    (tmp_path / "chat.toml").write_text(text.replace('chat_layout = "baichuan"\n', ""))
    write_rows(tmp_path / "chats.jsonl", conversations(60))
    made = obtain("chat.toml", "sft.length=6 steps", "sft.optimizer.learning_rate=1e-2")

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
    (chats,) = registry.list("chats")
    rows = chat_source(chats.path, chats, base, None, "sft")
    samples = rendered_chats(rows, "heldout", RenderSettings(64))
    nats, count = 0.0, 0
    for number, conversation in enumerate(Chats.open(chats.path).read("heldout")):
        whole = theirs.apply_chat_template(
            [*conversation.messages], tokenize=True, return_dict=False
        )
        sample = samples.sample(number)
        assert sample.tokens.tolist() == whole[: len(sample.tokens)]
        learnt = sample.labels >= 0
        assert sample.labels[learnt].tolist() == [
            token for token, is_learnt in zip(whole[1:], learnt.tolist(), strict=False) if is_learnt
        ]
        labels = torch.tensor(sample.labels, dtype=torch.long)
        logits = source.logits(sample.tokens.tolist())
        nats += F.cross_entropy(logits.float(), labels, reduction="sum").item()
        count += sample.trained
    evaluated = [row for row in read_rows(made.file(METRICS)) if row["event"] == "eval"]
    assert evaluated[0]["heldout_tokens"] == count
    assert evaluated[0]["heldout_loss"] == pytest.approx(nats / count, rel=1e-4)
    assert evaluated[-1]["heldout_loss"] < evaluated[0]["heldout_loss"] - 1

    asked = [{"role": "user", "content": "What is 1 + 2?"}]
    chat = chat_of(made, Tokenizer.load(tokenizer_path(made)))
    assert chat.prompt(asked) == theirs.apply_chat_template(
        asked, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    with pytest.raises(SystemExit) as left:
        main(["generate", made.ref, "What is 1 + 2?", "--chat", "--max-new-tokens", "8"])
    assert not left.value.code
    assert capsys.readouterr().out.strip()

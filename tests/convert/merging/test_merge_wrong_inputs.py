"""What cannot be merged: one clear message each, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import warmed
from made_adapters import adapter_of
from made_hf_models import original
from made_models import Weights, trained_from

from bc2.convert.importing.import_model import import_model
from bc2.registry import Artifact, Registry

HEAD = '[merge]\nmethod = "linear"\n'
TWO = '[[merge.models]]\nref = "a"\n[[merge.models]]\nref = "b"\n'
STOCK = '[merge]\nmethod = "model-stock"\nbase = "base"\n'
SLERP = '[merge]\nmethod = "slerp"\nt = 0.5\n'

#: Another layout than the release's.
LAYOUT = json.dumps(
    {"layout": "jinja", "template": "{% for m in messages %}{{ m.content }}</s>{% endfor %}"}
).encode()


@pytest.fixture
def base(home: Path) -> Artifact:
    original("baichuan2-7b").write(home.parent / "original")
    return import_model(Registry.open(), home.parent / "original", name="base")


@pytest.fixture
def pair(base: Artifact) -> tuple[Artifact, Artifact]:
    return trained_from(base, "a", 1), trained_from(base, "b", 2)


Refused = Callable[..., str]


@pytest.fixture
def refused(home: Path, bc2: Callable[..., Any]) -> Refused:
    """Runs a merge, and looks at how it ended and at what is left; what it said, on one line."""

    def run(text: str, code: int, *options: str) -> str:
        registry = Registry.open()
        there = len(registry.list())
        (home.parent / "merge.toml").write_text(text)
        done = bc2("merge", "merge.toml", *options)
        assert (done.code, done.out) == (code, ""), done.err
        assert len(registry.list()) == there
        assert not registry.staging.exists() or list(registry.staging.iterdir()) == []
        return " ".join(done.err.partition("error: ")[2].split())

    return run


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + TWO.replace('"a"', '"a"\nweight = 0.5'), "give it for all, or for none"),
        (
            HEAD + TWO.replace('"a"', '"a"\nweight = 0.5').replace('"b"', '"b"\nweight = 0.4'),
            "the weights sum to 0.9, not 1; or set normalise = true",
        ),
        (
            HEAD + "normalise = true\n"
            + TWO.replace('"a"', '"a"\nweight = 1').replace('"b"', '"b"\nweight = -1'),
            "the weights sum to 0: no division makes that 1",
        ),
        (HEAD + '[[merge.models]]\nref = "a"', "there is one, and linear merges 2 or more"),
        (HEAD + TWO + '[[merge.models]]\nref = "a"', "'a' is there twice"),
        (HEAD.replace("linear", "slerp") + TWO, "slerp needs t"),
        (SLERP + TWO + '[[merge.models]]\nref = "c"', "slerp is between 2, not 3"),
        (HEAD.replace("linear", "ties") + TWO, "ties needs base"),
        (HEAD.replace("linear", "soup") + TWO, "merge.method"),
        (HEAD + "t = 0.5\n" + TWO, "t is for slerp, not linear"),
        (STOCK + TWO.replace('"a"', '"a"\nweight = 1'), "weight of a model is for linear and"),
        (
            STOCK.replace("model-stock", "ties") + TWO.replace('"a"', '"a"\nweight = -1'),
            "with ties every weight is more than 0",
        ),
        (HEAD + 'speech = "c"\n' + TWO, "'c' is none of the models: a, b"),
        ("[model]\n", "has no [merge] section"),
    ],
)  # fmt: skip
def test_recipes_that_say_no_merge(text: str, said: str, refused: Refused) -> None:
    found = refused(text, 2)
    assert said in found
    assert "merge.toml" in found


def test_what_is_given_beside_a_recipe(base: Artifact, bc2: Callable[..., Any]) -> None:
    done = bc2("merge")
    assert (done.code, "got neither" in done.err) == (2, True)
    done = bc2("merge", "linear", "--adapter", "x")
    assert (done.code, "got both" in done.err) == (2, True)
    done = bc2("merge", "--adapter", "base", "--set", "merge.t=1")
    assert (done.code, "--set reaches nothing" in done.err) == (2, True)
    done = bc2("merge", "merge/linear", "--set", "pretrain.seed=1")
    assert (done.code, "pretrain.seed reaches nothing of a merge" in done.err) == (2, True)
    done = bc2("merge", "merge/liner")
    assert (done.code, "did you mean 'merge/linear'" in done.err) == (2, True)


def test_refs(base: Artifact, pair: Sequence[Artifact], refused: Refused) -> None:
    said = refused(HEAD + TWO.replace('"b"', '"bb"'), 4)
    assert "no artifact answers to 'bb'" in said
    assert "merge.toml:6" in said
    adapter_of(Registry.open(), base)
    said = refused(HEAD + TWO.replace('"b"', '"adapter"'), 4)
    assert "of role adapter, and one of role base, chat, reward or merged is needed" in said
    assert "bc2 merge --adapter adapter" in said
    said = refused(HEAD + TWO.replace('"b"', f'"{pair[0].ref}"'), 2)
    assert f"it is there twice: checkpoint/a ({pair[0].ref})" in said
    said = refused(STOCK.replace('"base"', '"a"') + TWO, 2)
    assert "the base is one of the models: checkpoint/a" in said


def test_other_shapes_and_other_tokenizers(
    base: Artifact, pair: Sequence[Artifact], refused: Refused, home: Path
) -> None:
    original("qwen2").write(home.parent / "qwen2")
    import_model(Registry.open(), home.parent / "qwen2", name="qwen2")
    said = refused(HEAD + TWO.replace('"b"', '"qwen2"'), 2)
    assert "checkpoint/a and checkpoint/qwen2 have different shapes: vocab_size is" in said
    other = base.file("tokenizer.model").read_bytes() + b"\x5a\x01\x00"
    trained_from(base, "spoken", 3, texts={"tokenizer.model": other})
    said = refused(HEAD + TWO.replace('"b"', '"spoken"'), 2)
    assert "checkpoint/a and checkpoint/spoken have different tokenizers" in said
    trained_from(base, "silent", 3, texts={"tokenizer.model": None})
    said = refused(HEAD + TWO.replace('"b"', '"silent"'), 3)
    assert "checkpoint/silent holds neither tokenizer.model nor" in said


def test_models_of_different_bases(
    base: Artifact, pair: Sequence[Artifact], refused: Refused, bc2: Callable[..., Any], home: Path
) -> None:
    alone = trained_from(base, "alone", 4, parents=False)
    said = refused(HEAD + TWO.replace('"b"', '"alone"'), 2)
    assert f"checkpoint/alone comes from checkpoint/alone ({alone.ref}), and checkpoint/a" in said
    # Of a base that is beside them, and not before.
    said = refused(STOCK.replace('"base"', '"c"') + TWO, 4)
    trained_from(base, "c", 5)
    said = refused(STOCK.replace('"base"', '"c"') + TWO, 2)
    assert "checkpoint/a was not trained from checkpoint/c" in said
    trained_from(alone, "of-alone", 6)
    said = refused(STOCK + TWO.replace('"b"', '"of-alone"'), 2)
    assert "comes from checkpoint/alone" in said


def test_imported_models_need_a_word_for_their_base(
    base: Artifact, pair: Sequence[Artifact], refused: Refused, bc2: Callable[..., Any], home: Path
) -> None:
    import made_baichuan

    release = made_baichuan.RELEASES["baichuan2-7b"]
    state = made_baichuan.drawn(release, 7)
    made_baichuan.write(home.parent / "other", release, state, "safetensors", 1)
    import_model(Registry.open(), home.parent / "other", name="other")
    text = HEAD + TWO.replace('"b"', '"other"')
    said = refused(text, 2)
    assert "nothing says that checkpoint/other and checkpoint/a were trained from one" in said
    assert "merge.same_base = true" in said
    assert bc2("merge", "merge.toml", "--set", "merge.same_base=true").code == 0


def test_numbers_that_are_none(base: Artifact, pair: Sequence[Artifact], refused: Refused) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def spoil(value: float) -> Callable[[Weights], object]:
        return lambda weights: weights[name].__setitem__((5, 3), value)

    for word, value in (("nan", float("nan")), ("inf", float("-inf"))):
        trained_from(base, word, 3, change=spoil(value))
        for text in (HEAD, SLERP, STOCK, STOCK.replace("model-stock", "ties")):
            said = refused(text + TWO.replace('"b"', f'"{word}"'), 3)
            assert f"{name} of checkpoint/{word} holds NaN or infinity" in said
    # Large, but numbers: what fp16 lacks is said of the merged tensor.
    trained_from(base, "large", 3, change=spoil(3e5))
    text = HEAD + 'dtype = "fp16"\n' + TWO.replace('"b"', '"large"')
    said = refused(text, 3)
    assert f"{name} becomes too large for float16" in said


def test_what_a_method_cannot_do(
    base: Artifact, pair: Sequence[Artifact], refused: Refused
) -> None:
    from made_models import weights_of

    name = "model.layers.0.self_attn.o_proj.weight"
    start, mine = weights_of(base)[name].float(), weights_of(pair[0])[name].float()
    back = 2 * start - mine
    trained_from(base, "back", 3, change=lambda w: w.update({name: back.to(w[name].dtype)}))
    said = refused(STOCK + TWO.replace('"b"', '"back"'), 3)
    assert f"model-stock cannot merge {name}: 1 + (N − 1) cos θ is" in said
    trained_from(base, "minus", 4, change=lambda w: w.update({name: -mine.to(w[name].dtype)}))
    said = refused(SLERP + TWO.replace('"b"', '"minus"'), 3)
    assert f"slerp cannot merge {name}: the cosine between them is -1.0000" in said


def test_layouts_that_differ_and_one_that_is_chosen(
    base: Artifact, pair: Sequence[Artifact], refused: Refused, bc2: Callable[..., Any]
) -> None:
    trained_from(base, "talks", 3, texts={"chat.json": LAYOUT})
    own = pair[0].file("chat.json").read_bytes()
    said = refused(HEAD + TWO.replace('"b"', '"talks"'), 2)
    assert "the models have different chat.json: checkpoint/a, checkpoint/talks" in said
    assert "merge.speech = 'a'" in said
    for chosen, expected in (("talks", LAYOUT), ("a", own)):
        done = bc2("merge", "merge.toml", "--set", f"merge.speech={chosen}", "--json")
        assert done.code == 0, done.err
        merged = Registry.open().get(json.loads(done.out)["digest"])
        assert merged.file("chat.json").read_bytes() == expected


def test_what_one_model_alone_has_is_kept_and_said(
    base: Artifact, bc2: Callable[..., Any], home: Path
) -> None:
    config = json.loads((base.path / "model.json").read_text())
    longer = json.dumps({**config, "context_length": 2 * config["context_length"]}).encode()
    for name, texts in (
        ("a", {"chat.json": None, "model.json": longer}), ("b", {"chat.json": LAYOUT}),
    ):  # fmt: skip
        trained_from(base, name, ord(name), texts=texts)
    (home.parent / "merge.toml").write_text(HEAD + TWO)
    done = bc2("merge", "merge.toml", "--json")
    assert done.code == 0, done.err
    assert "chat.json is that of checkpoint/b" in done.err
    shortest = config["context_length"]
    assert f"context_length differs: {shortest:,}, the shortest, is kept" in done.err
    merged = Registry.open().get(json.loads(done.out)["digest"])
    assert merged.file("chat.json").read_bytes() == LAYOUT
    assert json.loads(merged.file("model.json").read_text()) == config


def test_a_damaged_parent(base: Artifact, pair: Sequence[Artifact], refused: Refused) -> None:
    path = pair[1].path / "model.safetensors"
    path.chmod(0o644)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert "model.safetensors" in refused(HEAD + TWO, 5)


def test_a_full_disk(
    pair: Sequence[Artifact], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bc2.convert.tensor_files.write_at", full)
    assert "disk full" in refused(HEAD + TWO, 6)


#: Merges, and stops for good in the middle of the second tensor.
STOPS = """
import os, signal, sys
from bc2.convert.merging import merged_rows
from bc2.cli import main
find = merged_rows.MergedRows.of
def of(self, name, dtype, seen=[]):
    for rows in find(self, name, dtype):
        seen.append(name)
        if len(set(seen)) == 2:
            os.kill(os.getpid(), int(sys.argv[1]))
        yield rows
merged_rows.MergedRows.of = of
main(["merge", "merge.toml"])
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_merge_leaves_nothing(
    pair: Sequence[Artifact], home: Path, bc2: Callable[..., Any], signum: int
) -> None:
    registry = Registry.open()
    (home.parent / "merge.toml").write_text(HEAD + TWO)
    there = len(registry.list())
    done = warmed.run(
        [sys.executable, "-P", "-c", STOPS, str(int(signum))],
        capture_output=True, text=True, env={**os.environ, "BC2_HOME": str(home)}, check=False,
    )  # fmt: skip
    assert done.returncode == (128 + signum if signum == signal.SIGINT else -signum), done.stderr
    assert len(Registry.open().list()) == there
    if signum == signal.SIGINT:
        assert list(registry.staging.iterdir()) == []
    assert bc2("merge", "merge.toml", "--quiet").code == 0
    assert list(registry.staging.iterdir()) == []


def test_bf16_parents_are_read_as_what_they_are(base: Artifact, bc2: Callable[..., Any]) -> None:
    """One in fp32 and one in bf16: the mean of both, without rounding one to the other."""
    from made_models import weights_of

    one = trained_from(base, "a", 1, dtype=torch.float32)
    other = trained_from(base, "b", 2, dtype=torch.bfloat16)
    Path("merge.toml").write_text(HEAD + TWO)
    merged = Registry.open().get(json.loads(bc2("merge", "merge.toml", "--json").out)["digest"])
    found, left, right = map(weights_of, (merged, one, other))
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(found[name], (left[name] + right[name].float()) / 2)

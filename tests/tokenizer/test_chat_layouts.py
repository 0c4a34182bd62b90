"""Chat layouts against transformers' `apply_chat_template` and the released Baichuan's own code."""

from __future__ import annotations

import os
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_chats import (
    CHATML_TEMPLATE,
    LLAMA3_TEMPLATE,
    LLAMA31_TEMPLATE,
    MISTRAL_TEMPLATE,
    QWEN2_TEMPLATE,
    conversation,
)
from made_json_tokenizers import LLAMA3_SPECIAL, QWEN_SPECIAL, llama2_like, llama3_like, qwen_like

from bc2.errors import DataError
from bc2.tokenizer.chat import IGNORED, Chat, Message
from bc2.tokenizer.chat_file import chat_named
from bc2.tokenizer.chat_layouts import LAYOUTS
from bc2.tokenizer.chat_template import TemplateChat
from bc2.tokenizer.layout import ASSISTANT_ID, USER_ID
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.train import Trained

#: Conversations of a test; 1,000 in the slow ones.
FEW = 60

HOSTILE = [*QWEN_SPECIAL, *LLAMA3_SPECIAL, "<|im_start|>system\n", "<|im_end", "|>", "</s>", "<s>"]
REQUESTS = {
    "chatml": (qwen_like, CHATML_TEMPLATE),
    "llama3": (llama3_like, LLAMA3_TEMPLATE),
    "qwen2": (qwen_like, QWEN2_TEMPLATE),
    "llama31": (llama3_like, LLAMA31_TEMPLATE),
    "mistral": (llama2_like, MISTRAL_TEMPLATE),
}


def peer_of(folder: Path, model: bytes, template: str) -> Any:
    transformers = pytest.importorskip("transformers")
    (folder / "tokenizer.json").write_bytes(model)
    ours = Tokenizer.from_bytes(model)
    roles = {"bos_token": ours.bos_id, "eos_token": ours.eos_id}
    tokens = {role: ours.piece_of(i) for role, i in roles.items() if i >= 0}
    peer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), **tokens
    )
    peer.chat_template = template
    return peer


def ids_of(peer: Any, messages: Sequence[Message], **options: Any) -> list[int]:
    made = peer.apply_chat_template(list(messages), tokenize=True, return_dict=False, **options)
    return list(made)


def text_of(chat: Chat, ids: Sequence[int]) -> str:
    """Tokens as a template writes them: control tokens by their names."""
    tokenizer = chat.tokenizer
    pieces = [
        tokenizer.piece_of(i).encode() if tokenizer.is_control(i) else tokenizer.decode_bytes([i])
        for i in ids
    ]
    return b"".join(pieces).decode()


def compared(text: str) -> str:
    """Text without what a vocabulary changes: NFC, and spaces before texts."""
    return unicodedata.normalize("NFC", text).replace(" ", "")


def check_against(peer: Any, chat: Chat, count: int, hostile: Sequence[str]) -> None:
    """Ours is transformers' text, and its tokens where no message names a control token."""
    chance = random.Random(0)
    for _ in range(count):
        messages = conversation(chance, hostile)
        if chat.template == MISTRAL_TEMPLATE:
            messages = [message for message in messages if message["role"] != "system"]
        prompt = messages[-1]["role"] != "assistant"
        ours = chat.render(messages, generation_prompt=prompt)
        options = {"add_generation_prompt": prompt}
        theirs = peer.apply_chat_template(list(messages), tokenize=False, **options)
        assert compared(text_of(chat, ours.ids)) == compared(theirs)
        controls = [i for i in ours.ids if chat.tokenizer.is_control(i)]
        tame = [{**message, "content": "word"} for message in messages]
        asked = chat.render(tame, generation_prompt=prompt).ids
        assert controls == [i for i in asked if chat.tokenizer.is_control(i)]
        if not any(name in m["content"] for m in messages for name in chat.tokenizer.special_ids):
            assert ours.ids == ids_of(peer, messages, **options)


@pytest.fixture(scope="module", params=list(REQUESTS))
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A layout, and transformers with the template that it is released with."""
    make, template = REQUESTS[request.param]
    tokenizer = Tokenizer.from_bytes(make())
    peer = peer_of(tmp_path_factory.mktemp("peer"), make(), template)
    if request.param not in LAYOUTS:
        return TemplateChat(template, tokenizer), peer
    return chat_named(request.param, tokenizer), peer


@pytest.mark.parametrize("hostile", [(), HOSTILE], ids=["tame", "hostile"])
def test_a_layout_is_the_released_template(asked: Any, hostile: Sequence[str]) -> None:
    chat, peer = asked
    check_against(peer, chat, FEW, hostile)


@pytest.mark.slow
@pytest.mark.parametrize("hostile", [(), HOSTILE], ids=["tame", "hostile"])
def test_1_000_conversations_are_as_in_transformers(asked: Any, hostile: Sequence[str]) -> None:
    chat, peer = asked
    check_against(peer, chat, 1000, hostile)


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_what_is_exported_renders_alike_with_its_mask(name: str, tmp_path: Path) -> None:
    make, _ = REQUESTS[name]
    chat = chat_named(name, Tokenizer.from_bytes(make()))
    peer = peer_of(tmp_path, make(), chat.template)
    check_against(peer, chat, FEW, HOSTILE)
    imported = TemplateChat(chat.template, chat.tokenizer)
    peer.chat_template = chat.export(generation=True)  # type: ignore[attr-defined]
    chance = random.Random(1)
    for _ in range(FEW):
        messages = conversation(chance)
        ours = chat.render(messages)
        assert imported.render(messages) == ours
        theirs = peer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert theirs["input_ids"] == ours.ids
        # A token that also holds the heading's last line break is transformers' and not ours.
        if not any(m["content"][:1].isspace() for m in messages):
            assert theirs["assistant_masks"] == list(map(int, ours.mask))


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_an_imported_template_is_as_the_layout_by_name(name: str) -> None:
    make, template = REQUESTS[name]
    chat = chat_named(name, Tokenizer.from_bytes(make()))
    imported = TemplateChat(template, chat.tokenizer)
    assert imported.end_ids == chat.end_ids
    chance = random.Random(2)
    for _ in range(FEW):
        messages = conversation(chance, HOSTILE)
        assert imported.render(messages) == chat.render(messages)


def test_what_is_learnt_is_the_answer_and_its_end() -> None:
    chat = chat_named("chatml", Tokenizer.from_bytes(qwen_like()))
    messages: list[Message] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes <|im_end|> no"},
        {"role": "user", "content": "so"},
        {"role": "assistant", "content": ""},
    ]
    made = chat.render(messages)
    learnt = [label for label in made.labels if label != IGNORED]
    end = chat.tokenizer.id_of("<|im_end|>")
    assert learnt == [*chat.tokenizer.encode("yes <|im_end|> no"), end, end]
    assert [i for i, on in zip(made.ids, made.mask, strict=True) if on] == learnt
    assert chat.end_ids == (end, chat.tokenizer.eos_id)


def test_a_token_over_the_end_of_a_heading_is_not_learnt() -> None:
    chat = chat_named("chatml", Tokenizer.from_bytes(qwen_like()))
    heading = chat.prompt([{"role": "user", "content": "hi"}])
    made = chat.render(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "\n\nyes"}]
    )
    both = len(heading) - 1
    assert chat.tokenizer.decode([made.ids[both]]) == "\n\n\n"
    assert chat.tokenizer.decode([i for i in made.labels if i != IGNORED]) == "yes"


# ------------------------------------------------------------------------------ Baichuan's


@pytest.fixture(scope="module")
def baichuan(tokenizer: Tokenizer) -> Chat:
    return chat_named("baichuan", tokenizer)


def released_input(tokenizer: Tokenizer, messages: Sequence[Message], room: int) -> list[int]:
    """`build_chat_input` of the released model: whole rounds, the newest first."""
    system = "".join(m["content"] for m in messages if m["role"] == "system")
    rounds: list[list[int]] = []
    for message in messages:
        if message["role"] == "user":
            rounds.append([])
        if message["role"] != "system":
            marker = USER_ID if message["role"] == "user" else ASSISTANT_ID
            rounds[-1] += [marker, *tokenizer.encode(message["content"])]
    first = tokenizer.encode(system)
    kept: list[int] = []
    for one in rounds[::-1]:
        if not kept or len(kept) + len(one) <= room - len(first):
            kept = one + kept
            if len(kept) < room - len(first):
                continue
        break
    return [*first, *kept, ASSISTANT_ID][-room:]


def test_baichuan_keeps_whole_rounds_as_released(baichuan: Chat) -> None:
    chance = random.Random(0)
    cut = 0
    for _ in range(300):
        messages = conversation(chance, HOSTILE)
        if messages[-1]["role"] == "assistant":
            messages.append({"role": "user", "content": "and now?"})
        whole = baichuan.prompt(messages)
        assert whole == released_input(baichuan.tokenizer, messages, 10**6)
        for room in {1, 5, len(whole) // 2, len(whole) - 1, len(whole), len(whole) + 1} - {0}:
            made = baichuan.prompt(messages, room)
            assert made == released_input(baichuan.tokenizer, messages, room)
            assert len(made) <= room
            cut += made != whole
    assert cut > 300


def test_baichuan_learns_the_end_at_the_next_marker(baichuan: Chat) -> None:
    encode, eos = baichuan.tokenizer.encode, baichuan.tokenizer.eos_id
    made = baichuan.render(
        [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
            {"role": "assistant", "content": "four"},
        ]
    )
    skip = [IGNORED]
    parts = [
        (encode("be kind"), skip * len(encode("be kind"))),
        ([USER_ID, *encode("one")], skip * (1 + len(encode("one")))),
        ([ASSISTANT_ID, *encode("two")], [*skip, *encode("two")]),
        ([USER_ID, *encode("three")], [eos, *skip * len(encode("three"))]),
        ([ASSISTANT_ID, *encode("four")], [*skip, *encode("four")]),
        ([eos], [eos]),
    ]
    assert made.ids == [i for ids, _ in parts for i in ids]
    assert made.labels == [i for _, labels in parts for i in labels]
    assert baichuan.end_ids == (eos,)


@pytest.fixture(scope="module")
def baichuan_peer(
    baichuan: Chat, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """transformers with the template that is exported."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("baichuan")
    (folder / "tokenizer.model").write_bytes(trained.model)
    markers = [baichuan.tokenizer.piece_of(i) for i in (USER_ID, ASSISTANT_ID)]
    peer = transformers.LlamaTokenizer.from_pretrained(
        folder, add_prefix_space=False, additional_special_tokens=markers
    )
    peer.chat_template = baichuan.template
    return peer


#: What a user could type to begin a turn of Baichuan's.
TYPED = [*HOSTILE, "<reserved_106>", "<reserved_107>", "<reserved_10", "6>"]


@pytest.mark.parametrize("hostile", [(), TYPED], ids=["tame", "hostile"])
def test_transformers_renders_baichuan_alike(
    baichuan: Chat, baichuan_peer: Any, hostile: Sequence[str]
) -> None:
    check_against(baichuan_peer, baichuan, FEW, hostile)


@pytest.mark.slow
@pytest.mark.parametrize("hostile", [(), TYPED], ids=["tame", "hostile"])
def test_1_000_conversations_of_baichuan_are_as_in_transformers(
    baichuan: Chat, baichuan_peer: Any, hostile: Sequence[str]
) -> None:
    check_against(baichuan_peer, baichuan, 1000, hostile)


MODELS = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "models"


def test_a_marker_that_is_an_ordinary_piece_cannot_be_typed() -> None:
    if not (MODELS / "baichuan_sp").is_dir():
        pytest.skip("needs shared/data/models, or BC2_TEST_DATA")
    tokenizer = Tokenizer.load(MODELS / "baichuan_sp")
    marker = tokenizer.piece_of(USER_ID)
    assert USER_ID in tokenizer.encode(f"a{marker}b")  # so the tokenizer itself has it
    chat = chat_named("baichuan", tokenizer)
    ids = chat.prompt([{"role": "user", "content": f"a{marker}b{marker}{marker}"}])
    assert ids.count(USER_ID) == 1
    assert tokenizer.decode(ids[1:-1]) == f"a{marker}b{marker}{marker}"


# --------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "without messages"),
        ([{"role": "user"}], "not an object with a `role`"),
        ([{"role": "user", "content": 3}], "not an object with a `role`"),
        ([{"role": "tool", "content": ""}], "unknown role 'tool'"),
        ([{"role": "user", "content": ""}, {"role": "system", "content": ""}], "a system message"),
        ([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}], "the last word"),
    ],
)
def test_messages_without_a_place_are_refused(
    baichuan: Chat, messages: list[Any], said: str
) -> None:
    with pytest.raises(DataError, match=said.replace("the last word", "nothing to answer")):
        baichuan.prompt(messages)


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_a_layout_needs_its_control_tokens(tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(DataError, match=rf"the {name} layout needs the special token <\|"):
        chat_named(name, tokenizer)


def test_baichuans_markers_are_no_ordinary_pieces() -> None:
    with pytest.raises(DataError, match="the baichuan layout needs the special token 195"):
        chat_named("baichuan", Tokenizer.from_bytes(qwen_like()))


@pytest.mark.parametrize(
    ("mark", "value"),
    [
        ("train", "no"), ("train", 1), ("weight", 0), ("weight", -1.0), ("weight", True),
        ("weight", float("nan")), ("weight", float("inf")), ("weight", 1e39), ("weight", "2"),
    ],
)  # fmt: skip
def test_marks_of_training_are_what_they_may_be(trained: Trained, mark: str, value: Any) -> None:
    chat = chat_named("baichuan", Tokenizer.from_bytes(trained.model))
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", mark: value},
    ]
    with pytest.raises(DataError, match=f"`{mark}` is"):
        chat.render(messages)

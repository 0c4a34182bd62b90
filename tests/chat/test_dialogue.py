"""Prompts of conversations: what was sampled stays, whole rounds fall out."""

from __future__ import annotations

import random
from collections.abc import Callable

import made_checkpoints
import pytest
from made_chats import CHATML_TEMPLATE, LLAMA31_TEMPLATE, MISTRAL_TEMPLATE, QWEN2_TEMPLATE
from made_json_tokenizers import llama2_like, llama3_like, qwen_like

from bc2.chat.dialogue import Dialogue, Question
from bc2.errors import DataError, UsageError
from bc2.tokenizer.chat import Chat
from bc2.tokenizer.chat_file import chat_named
from bc2.tokenizer.chat_template import TemplateChat
from bc2.tokenizer.layout import ASSISTANT_ID, USER_ID
from bc2.tokenizer.tokenizer import Tokenizer

WORDS = (
    "hello",
    "What is",
    " 2 + 2?",
    "天地玄黄，",
    "def f(x):\n\treturn x",
    "é",
    "\n",
    "<|im_end|>",
    "",
)

#: Layouts: the tokenizer's file, and a template if it is no layout by name.
LAYOUTS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "baichuan": (made_checkpoints.tokenizer_bytes, None),
    "chatml": (qwen_like, None),
    "llama3": (llama3_like, None),
    "qwen2": (qwen_like, QWEN2_TEMPLATE),
    "imported chatml": (qwen_like, CHATML_TEMPLATE),
    "llama31": (llama3_like, LLAMA31_TEMPLATE),
    "mistral": (llama2_like, MISTRAL_TEMPLATE),
}


def layout(name: str) -> Chat:
    make, template = LAYOUTS[name]
    tokenizer = Tokenizer.from_bytes(make())
    return TemplateChat(template, tokenizer) if template else chat_named(name, tokenizer)


@pytest.fixture(scope="module", params=list(LAYOUTS))
def chat(request: pytest.FixtureRequest) -> Chat:
    return layout(request.param)


@pytest.fixture(scope="module")
def baichuan() -> Chat:
    return layout("baichuan")


def said(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def phrase(chance: random.Random) -> str:
    return "".join(chance.choices(WORDS, k=chance.randint(0, 6)))


def system_for(chat: Chat, chance: random.Random) -> str | None:
    return None if chat.template == MISTRAL_TEMPLATE else chance.choice([None, phrase(chance)])


def drawn_ids(chat: Chat, chance: random.Random) -> list[int]:
    """Any ids: a model need not say what its words would be encoded to."""
    return [chance.randrange(chat.tokenizer.vocab_size) for _ in range(chance.randint(0, 12))]


def answered(dialogue: Dialogue, question: Question, ids: list[int]) -> list[int]:
    """Keep an answer; all tokens that the conversation has now."""
    text = dialogue.chat.generated_bytes(ids).decode("utf-8", "replace")
    dialogue.add(question, ids, text)
    return [*question.prompt, *ids]


def test_a_turn_changes_no_earlier_token(chat: Chat) -> None:
    """Whatever the tokens of the answers are, and wherever answers were cut."""
    chance = random.Random(0)
    for _ in range(12):
        dialogue = Dialogue(chat, 10**6, system_for(chat, chance))
        so_far: list[int] = []
        for turn in range(8):
            question = dialogue.ask(phrase(chance), 16)
            assert question.prompt[: len(so_far)] == so_far
            assert (question.left_out, question.cut) == (0, 0)
            assert turn == 0 or question.prompt == [*so_far, *question.asked]
            so_far = answered(dialogue, question, drawn_ids(chat, chance))


def test_the_prompt_is_the_layouts_where_answers_are_the_tokens_of_their_text(chat: Chat) -> None:
    chance = random.Random(1)
    for _ in range(12):
        system = system_for(chat, chance)
        dialogue = Dialogue(chat, 10**6, system)
        for _ in range(6):
            user = "u" + phrase(chance)
            question = dialogue.ask(user, 16)
            if chat.template != MISTRAL_TEMPLATE:  # its answers and headings are one text
                messages = [*dialogue.messages, said(user)]
                assert question.prompt == chat.prompt(messages)
            text = "a" + phrase(chance).strip()  # no white space that a layout takes off
            talk = [said("u"), {"role": "assistant", "content": text}]
            dialogue.add(question, chat.turns(talk)[1], text)


def whole_rounds(
    chat: Chat, system: str, rounds: list[tuple[str, str]], user: str, room: int
) -> list[int]:
    """Whole rounds, the newest first; the newest message is kept, and loses its beginning."""
    encode = chat.tokenizer.encode
    first = encode(system)
    kept = [USER_ID, *encode(user), ASSISTANT_ID]
    for asked, answer in reversed(rounds):
        one = [USER_ID, *encode(asked), ASSISTANT_ID, *encode(answer)]
        if len(first) + len(one) + len(kept) > room:
            break
        kept = one + kept
    return [*first, *kept][-room:]


def test_baichuan_keeps_whole_rounds(baichuan: Chat) -> None:
    """As `Chat.prompt` with a room, the released rule, but where that fills the room by one more.

    The released code does not count the last marker, and cuts the first one off then.
    """
    chance = random.Random(2)
    fell = cut = alike = 0
    for _ in range(60):
        window, longest = chance.randint(30, 200), chance.randint(1, 20)
        room = window - longest
        dialogue = Dialogue(baichuan, window, system_for(baichuan, chance))
        for _ in range(8):
            user = phrase(chance)
            rounds = [(one.user, one.answer) for one in dialogue.rounds]
            question = dialogue.ask(user, longest)
            kept = whole_rounds(baichuan, dialogue.system or "", rounds, user, room)
            assert question.prompt == kept
            fell, cut = fell + (question.left_out > 0), cut + (question.cut > 0)
            released = baichuan.prompt([*dialogue.messages, said(user)], room)
            if released[:1] == question.prompt[:1] or question.cut:
                assert question.prompt == released
                alike += 1
            text = phrase(chance)
            dialogue.add(question, baichuan.tokenizer.encode(text), text)
    assert min(fell, cut) > 20
    assert alike > 400


def test_whole_rounds_fall_out_of_every_layout(chat: Chat) -> None:
    chance = random.Random(3)
    system = None if chat.template == MISTRAL_TEMPLATE else "Be short."
    dialogue = Dialogue(chat, 400, system)
    left_out = 0
    for turn in range(30):
        question = dialogue.ask(f"number {turn}", 20)
        assert len(question.prompt) <= 380
        assert left_out <= question.left_out <= turn
        left_out = question.left_out
        rounds = dialogue.rounds[left_out:]
        if rounds:
            first = chat.prompt([*Dialogue(chat, 400, system).messages, said(rounds[0].user)])
            rest = [i for one in rounds[1:] for i in (*one.asked, *one.said)]
            assert question.prompt == [*first, *rounds[0].said, *rest, *question.asked]
        if left_out:  # with one round more it would be too long
            more = Dialogue(chat, 10**6, system)
            more.rounds = dialogue.rounds[left_out - 1 :]
            assert len(more.ask(f"number {turn}", 20).prompt) > 380
        answered(dialogue, question, [chance.randrange(200) for _ in range(9)])
    assert left_out > 5


def test_rounds_come_back_when_there_is_room_again(baichuan: Chat) -> None:
    dialogue = Dialogue(baichuan, 60)
    for number in range(6):
        answered(dialogue, dialogue.ask(f"what is {number}?", 8), baichuan.tokenizer.encode("it"))
    assert dialogue.ask("and?", 50).left_out > dialogue.ask("and?", 8).left_out


def test_a_message_that_is_too_long_changes_nothing() -> None:
    chat = layout("chatml")
    dialogue = Dialogue(chat, 80, "Be short.")
    answered(dialogue, dialogue.ask("hello", 10), [65])
    before = list(dialogue.rounds)
    with pytest.raises(DataError, match="the window of 80 has room for 70 beside the answer"):
        dialogue.ask("word " * 100, 10)
    assert (dialogue.rounds, dialogue.left_out) == (before, 0)
    assert dialogue.ask("hello again", 10).left_out == 0


@pytest.mark.parametrize("longest", [80, 81])
def test_an_answer_that_fills_the_window(baichuan: Chat, longest: int) -> None:
    with pytest.raises(UsageError, match="leaves nothing of the window of 80"):
        Dialogue(baichuan, 80).ask("hello", longest)


def test_the_systems_message_changes_the_beginning_alone(baichuan: Chat) -> None:
    dialogue = Dialogue(baichuan, 1000)
    answered(dialogue, dialogue.ask("hello", 10), [400, 401])
    plain = dialogue.ask("and?", 10).prompt
    dialogue.set_system("the answer is")
    system = baichuan.tokenizer.encode("the answer is")
    assert dialogue.ask("and?", 10).prompt == [*system, *plain]
    dialogue.clear()
    assert dialogue.ask("hello", 10).prompt[: len(system)] == system


def test_a_layout_without_a_place_for_a_systems_message() -> None:
    chat = layout("mistral")
    with pytest.raises(DataError, match="does not take these messages"):
        Dialogue(chat, 1000, "Be short.")
    dialogue = Dialogue(chat, 1000)
    with pytest.raises(DataError, match="does not take these messages"):
        dialogue.set_system("Be short.")
    assert dialogue.system is None


def test_a_layout_that_moves_the_systems_message_to_the_newest_message() -> None:
    """As Mistral's later ones: the first answer would be the last."""
    template = CHATML_TEMPLATE.replace(
        "+ message['content']",
        "+ (messages[0].content if loop.last and messages[0].role == 'system' else '')"
        "+ (message.content if message.role != 'system' else '')",
    )
    chat = TemplateChat(template, Tokenizer.from_bytes(qwen_like()))
    dialogue = Dialogue(chat, 1000)
    with pytest.raises(DataError, match="adding a turn changes what is before it"):
        dialogue.set_system("Be short.")
    assert dialogue.system is None
    for _ in range(2):
        answered(dialogue, dialogue.ask("hello", 10), [65])

"""Conversations that are made up: arithmetic within 20, copying and formatting, by seed.

Short and regular, so that a model of a few million parameters learns their forms in minutes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from random import Random

from bc2.tokenizer.chat import Message

#: What is said in one conversation.
Said = tuple[Message, ...]

#: Conversations of each task that draws its words.
_COUNT = 1000

#: Words, between spaces.
_ENGLISH = (
    "apple bird boat book box bread bridge cat chair cloud coin cup desk dog door egg field fish "
    "flower garden glass gold green hand hat hill horse house island key lake lamp leaf letter "
    "milk moon morning mountain music night ocean paper pen pencil rain red river road rock "
    "salt sand ship silver sky snow song spoon star stone street summer sun table tea tower train "
    "tree water wind window winter wood yellow"
)
_CHINESE = (
    "苹果 鸟 船 书 盒子 面包 桥 猫 椅子 云 硬币 杯子 桌子 狗 门 鸡蛋 田野 鱼 花 "
    "花园 玻璃 手 帽子 马 房子 岛 钥匙 湖 灯 树叶 信 牛奶 月亮 早晨 山 音乐 夜晚 "
    "海洋 纸 笔 雨 河 路 石头 盐 沙 天空 雪 歌 勺子 星星 街道 夏天 太阳 茶 塔 火车 "
    "树 水 风 窗户 冬天 木头"
)


def round_of(question: str, answer: str) -> Said:
    """A question of the user and its answer."""
    return ({"role": "user", "content": question}, {"role": "assistant", "content": answer})


def made_tasks(seed: int) -> Iterator[tuple[str, Said]]:
    """The name of a task and what is said in one conversation of it; each says something else."""
    for name, task in _TASKS.items():
        # Seeded by a text, which `Random` takes the same everywhere.
        for said in task(Random(f"{seed} {name}")):
            yield name, said


def sums() -> Iterator[tuple[int, str, int, int]]:
    """Every ``a + b`` and ``a - b`` within 20: a, the sign, b, the result."""
    for a, b in itertools.product(range(21), repeat=2):
        if a + b <= 20:
            yield a, "+", b, a + b
        if a >= b:
            yield a, "-", b, a - b


def _arithmetic(random: Random) -> Iterator[Said]:
    for a, sign, b, result in sums():
        yield _english_sum(a, sign, b, result)
        yield _chinese_sum(a, sign, b, result)
        yield round_of(f"{a} {sign} {b} =", f"{a} {sign} {b} = {result}")


def _english_sum(a: int, sign: str, b: int, result: int) -> Said:
    return round_of(f"What is {a} {sign} {b}?", f"{a} {sign} {b} is {result}.")


def _chinese_sum(a: int, sign: str, b: int, result: int) -> Said:
    word = "加" if sign == "+" else "减"
    return round_of(f"{a}{word}{b}等于几？", f"{a}{word}{b}等于{result}。")


def _numbers_alone(random: Random) -> Iterator[Said]:
    """Of the same questions a system text makes other answers."""
    for a, sign, b, result in sums():
        english = random.random() < 0.5
        system = "Answer with a number alone." if english else "只回答数字。"
        question, _ = (_english_sum if english else _chinese_sum)(a, sign, b, result)
        answer = {"role": "assistant", "content": str(result)}
        yield ({"role": "system", "content": system}, question, answer)


def _copying(random: Random) -> Iterator[Said]:
    yield from _distinct(random, _copy)


def _formatting(random: Random) -> Iterator[Said]:
    for form in (_list, _capitals, _chinese_list):
        yield from _distinct(random, form)


def _two_rounds(random: Random) -> Iterator[Said]:
    """Two tasks one after another, in one language or in both."""
    every = list(sums())

    def both(random: Random) -> Said:
        kinds: tuple[Callable[[], Said], ...] = (
            lambda: _english_sum(*random.choice(every)),
            lambda: _chinese_sum(*random.choice(every)),
            lambda: _copy(random),
            lambda: _list(random),
        )
        return random.choice(kinds)() + random.choice(kinds)()

    yield from _distinct(random, both)


def _copy(random: Random) -> Said:
    if random.random() < 0.5:
        text = " ".join(_words(random, _ENGLISH, 4))
        return round_of(f"Repeat: {text}", text)
    text = "".join(_words(random, _CHINESE, 4))
    return round_of(f"重复：{text}", text)


def _list(random: Random) -> Said:
    words = _words(random, _ENGLISH, 3)
    return round_of(f"Make a list: {', '.join(words)}", _numbered(words))


def _chinese_list(random: Random) -> Said:
    words = _words(random, _CHINESE, 3)
    return round_of(f"列成清单：{'、'.join(words)}", _numbered(words))


def _capitals(random: Random) -> Said:
    text = " ".join(_words(random, _ENGLISH, 3))
    return round_of(f"Write in capitals: {text}", text.upper())


def _numbered(words: list[str]) -> str:
    return "\n".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _words(random: Random, of: str, most: int) -> list[str]:
    known = of.split()
    return [random.choice(known) for _ in range(random.randint(2, most))]


def _distinct(random: Random, draw: Callable[[Random], Said]) -> Iterator[Said]:
    seen: set[str] = set()
    while len(seen) < _COUNT:
        said = draw(random)
        asked = " ".join(message["content"] for message in said)
        if asked not in seen:
            seen.add(asked)
            yield said


_TASKS: dict[str, Callable[[Random], Iterator[Said]]] = {
    "arithmetic": _arithmetic,
    "copying": _copying,
    "formatting": _formatting,
    "numbers-alone": _numbers_alone,
    "two-rounds": _two_rounds,
}

"""Make bad sentences from good ones, to train a scorer if no bad sentences were collected.

Each kind of damage or noise occurs in crawled text: wrong decoding, words out of order, missing
spaces, repeated words, repeated keywords, markup, recognition errors, random typing, and the lines
around articles on web pages.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterable, Iterator

from bc2.data.prep.text.sentences import CJK, prose_sentences

_UNIT = re.compile(rf"[{CJK}]|[^\s{CJK}]+|\s+")
_MOJIBAKE = (("utf-8", "cp1252"), ("utf-8", "gbk"), ("gb18030", "latin-1"), ("utf-8", "cp437"))
_NOISE = "#@$%^&*~|\\<>{}[]_=+¦§¤¬■□◆★\ufffd"

_MENUS = (
    "Home|News|Sports|Contact|About us|Login|Register|Search|Help|FAQ|Shop|Cart|Blog|Forum|"
    "Privacy policy|Terms of use|Sitemap|Subscribe|Careers|Press|Support|Downloads|Gallery",
    "首页|新闻|体育|财经|娱乐|科技|汽车|房产|论坛|博客|登录|注册|帮助|网站地图|联系我们|关于我们|下载|"
    "视频|图片|招聘|客服|会员中心|加入收藏|设为首页|友情链接",
)
_LINES = (
    "Copyright © {year} {word} Inc. All rights reserved.",
    "Click here to {word} now!!! Limited time offer, {n}% off",
    "Posted by {word} on {n}/{n}/{year} | {n} comments | Share on Facebook | Tweet",
    "Page {n} of {n} « Previous | Next »",
    "This site uses cookies. By continuing to browse {word} you accept our use of cookies.",
    "Sign up for our newsletter and get {n}% off your first {word}!",
    "Javascript must be enabled to view {word}.",
    "Views: {n}  Replies: {n}  Last post: {n}:{n} by {word}",
    "版权所有 © {year} {word} 京ICP备{n}{n}{n}号-{n}",
    "上一篇：{word} 下一篇：{word} 返回列表 【打印】【关闭】",
    "点击这里查看更多{word}>>",
    "浏览次数：{n} 发布时间：{year}-{n}-{n} 来源：{word} 字号：大 中 小",
    "加微信{n}{n}{n}免费领取{word}，限时{n}折！！！",
    "本网站所刊载{word}仅供参考，转载请注明出处，客服热线：{n}-{n}{n}{n}",
    "【{word}】最新{word}价格_{word}哪家好_{word}多少钱-{word}网",
    "扫一扫关注{word}公众号，回复“{word}”获取{n}G资料",
)


def corrupted(texts: Iterable[str], seed: int) -> Iterator[str]:
    """Make a bad sentence from each sentence of `texts`.

    One in ten is a line as it is found around articles on web pages, the others are damaged.
    Sentences of fewer than four words (a CJK character is a word) are skipped. The same texts and
    seed give the same sentences.
    """
    chance = random.Random(seed)
    for text in texts:
        for piece in prose_sentences(text):
            units = _UNIT.findall(piece.strip())
            words = [unit for unit in units if not unit.isspace()]
            if len(words) < 4:
                continue
            if chance.random() < 0.1:
                yield _boilerplate(words, chance)
            else:
                yield chance.choice(_DAMAGE)(units, words, chance)


def _boilerplate(words: list[str], chance: random.Random) -> str:
    if chance.random() < 0.3:
        menu = chance.choice(_MENUS).split("|")
        return chance.choice((" | ", " ", " > ", "·")).join(chance.sample(menu, 6))
    line = re.sub(r"\{n\}", lambda _: str(chance.randrange(1, 100)), chance.choice(_LINES))
    line = line.replace("{year}", str(chance.randrange(2000, 2026)))
    return re.sub(r"\{word\}", lambda _: "".join(chance.choices(words, k=2)), line)


def _spaced(words: Iterable[str]) -> str:
    """Join words with spaces, and CJK characters without."""
    joined = " ".join(words)
    return re.sub(rf"(?<=[{CJK}]) (?=[{CJK}])", "", joined)


def _shuffle(units: list[str], words: list[str], chance: random.Random) -> str:
    return _spaced(chance.sample(words, len(words)))


def _repeat(units: list[str], words: list[str], chance: random.Random) -> str:
    first = chance.randrange(len(words) - 2)
    phrase = words[first : first + chance.randrange(1, 4)]
    return _spaced(phrase * chance.randrange(4, 12))


def _mojibake(units: list[str], words: list[str], chance: random.Random) -> str:
    written, read = chance.choice(_MOJIBAKE)
    text = "".join(units)
    wrong = text.encode(written, "replace").decode(read, "replace")
    return wrong if wrong != text else _noise(units, words, chance)


def _run_together(units: list[str], words: list[str], chance: random.Random) -> str:
    if not any(unit.isspace() for unit in units):
        return _spaced(word + " " * (chance.random() < 0.6) for word in words)
    return "".join(words)


def _stuffing(units: list[str], words: list[str], chance: random.Random) -> str:
    longest = sorted(set(words), key=lambda word: (-len(word), word))[:6]
    return chance.choice((", ", " ", "，", " - ")).join(chance.choices(longest, k=12))


def _markup(units: list[str], words: list[str], chance: random.Random) -> str:
    tag = chance.choice(("div", "span", "td", "li", "a", "font"))
    name = "".join(chance.choices(string.ascii_lowercase, k=5))
    some = _spaced(words[: chance.randrange(2, 6)])
    link = f"http://www.{name}.com/{name}.php?id={chance.randrange(10**6)}&ref={name}"
    return chance.choice(
        (
            f'<{tag} class="{name}" href="{link}">{some}</{tag}></{tag}>',
            f"{some} {link} {link}",
            f"&nbsp;&nbsp;{some}&gt;&lt;br/&gt;[url={link}]{name}[/url]",
            f"function {name}(){{document.write('{some}');return false;}}",
        )
    )


def _noise(units: list[str], words: list[str], chance: random.Random) -> str:
    rate = chance.uniform(0.1, 0.4)
    text = "".join(units)
    return "".join(chance.choice(_NOISE) if chance.random() < rate else c for c in text)


def _mash(units: list[str], words: list[str], chance: random.Random) -> str:
    letters = string.ascii_letters + string.digits
    return _spaced("".join(chance.choices(letters, k=chance.randrange(1, 14))) for _ in words)


def _shuffled_letters(units: list[str], words: list[str], chance: random.Random) -> str:
    if len(words) > 2 * sum(len(word) > 1 for word in words):
        return _shuffle(units, words, chance)
    return _spaced("".join(chance.sample(word, len(word))) for word in words)


def _random_case(units: list[str], words: list[str], chance: random.Random) -> str:
    text = "".join(c.upper() if chance.random() < 0.5 else c.lower() for c in "".join(units))
    return text if text.lower() != text else _shuffle(units, words, chance)


_DAMAGE: tuple[Callable[[list[str], list[str], random.Random], str], ...] = (
    _shuffle,
    _repeat,
    _mojibake,
    _run_together,
    _stuffing,
    _markup,
    _noise,
    _mash,
    _shuffled_letters,
    _random_case,
)

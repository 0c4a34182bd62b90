"""Chinese technical articles in Markdown, as translators and system administrators write them.

Every sentence and every listing is made up here; only the shapes are those of real articles: a
head of metadata, pictures, fences and indented code with blank lines, terminals, tables, nested
lists, credits and link definitions at the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from zh_phrases import (
    BARE,
    CELLS,
    CLOSERS,
    COMMANDS,
    CREDITS,
    NAMES,
    OPENERS,
    OUTPUTS,
    PROGRAMS,
    PURPOSES,
    SENTENCES,
    TITLES,
    TOOLS,
)


class Article(NamedTuple):
    """A text and what it is made of; every piece stands in the text as it is."""

    text: str
    sentences: list[str]
    """Sentences of prose."""
    constructs: list[str]
    """Listings, tables, pictures, headings, the footer."""


class _Writer:
    def __init__(self, seed: int, sentences: Sequence[str]):
        self.draw = random.Random(seed)
        self.given = [*sentences]
        self.draw.shuffle(self.given)
        self.said: set[str] = set()
        self.closers: list[str] = []
        self.blocks: list[str] = []
        self.sentences: list[str] = []
        self.constructs: list[str] = []

    def fill(self, template: str) -> str:
        draw = self.draw
        port = draw.randint(1024, 30000)
        return template.format(
            a=draw.choice(TOOLS),
            b=draw.choice(PURPOSES),
            p=draw.choice(PROGRAMS),
            k=draw.choice("abcdefgh"),
            n=draw.randint(10, 64),
            m=draw.randint(1, 9),
            port=port,
            port2=port + draw.randint(1, 500),
            name=draw.choice(NAMES),
        )

    def sentence(self) -> str:
        if self.given:
            said = self.given.pop()
        else:
            said = self.made_up()
            while said in self.said:
                said = self.made_up()
        self.said.add(said)
        self.sentences.append(said)
        return said

    def made_up(self) -> str:
        if self.draw.random() < 0.3:
            return self.fill(self.draw.choice(SENTENCES))
        opener = self.fill(self.draw.choice(OPENERS))
        if len(self.closers) < 2:
            self.closers = [*CLOSERS]
            self.draw.shuffle(self.closers)
        first, then = self.fill(self.closers.pop()), self.fill(self.closers.pop())
        return f"{opener}，{first}；{then}。"

    def add(self, block: str, construct: bool = True) -> None:
        self.blocks.append(block)
        if construct:
            self.constructs.append(block)

    def text_of(self, count: int, between: str = "") -> str:
        return between.join(self.sentence() for _ in range(count))

    # -- parts ------------------------------------------------------------------------------

    def paragraph(self) -> None:
        self.add(self.text_of(self.draw.randint(1, 4)), construct=False)

    def listing(self) -> str:
        lines = [self.fill(self.draw.choice(COMMANDS)) for _ in range(self.draw.randint(1, 3))]
        if self.draw.random() < 0.7:
            lines.append(self.fill(self.draw.choice(OUTPUTS)))
        return "\n".join(lines)

    def fence(self) -> None:
        mark = self.draw.choice(("```", "```", "```bash", "~~~", "```\n"))
        closing = mark.split("\n")[0].rstrip("bash")
        self.announce(f"{mark}\n{self.listing()}\n{closing}")

    def indented(self) -> None:
        width = self.draw.choice(("    ", "    ", "     ", "\t"))
        blank = self.draw.choice(("", "    "))
        lines = [width + line if line else blank for line in self.listing().split("\n")]
        self.announce("\n".join(lines))

    def bare(self) -> None:
        """Commands or settings without any mark."""
        self.add(self.fill(self.draw.choice(BARE)))

    def announce(self, code: str) -> None:
        """A sentence before code, sometimes without a blank line; sometimes text right after."""
        lead = self.draw.choice(("运行下面的命令：", "输出如下：", "**答**：", "### 例子", ""))
        tight = code[0] in "`~" and lead.endswith("：") and self.draw.random() < 0.3
        block = code
        if tight:
            block = f"{lead}\n{code}"
            if self.draw.random() < 0.5:
                block += "\n" + self.text_of(1)
        elif lead:
            self.blocks.append(lead)
        self.constructs.append(code)
        self.blocks.append(block)

    def picture(self) -> None:
        shape = self.draw.choice(
            (
                "![][{m}]",
                "![查看结果。图中是 {p} 的界面！][{m}]",
                "![{p}](https://example.com/wp-content/uploads/2014/06/{p}_001.png)",
                ' ![](https://example.com/{p}_(1).jpg "{p} 的界面。") ',
                "[![{p}](https://example.com/{p}.png)](https://example.com/{p}.html)",
                "<img src='https://example.com/{p}.png' alt='{p}' width=600 />",
                "[下载 {p}][{m}]",
            )
        )
        self.add(self.fill(shape))

    def heading(self) -> None:
        title = self.fill(self.draw.choice(TITLES))
        shape = self.draw.choice(
            ("### {}", "### {} ###", "###{}###", "## {m}. {}", "**{}**", "{}\n---", "#### #{m}：{}")
        )
        self.add(shape.replace("{m}", str(self.draw.randint(1, 9))).replace("{}", title))

    def table(self) -> None:
        rows = [[self.fill(cell) for cell in self.draw.choice(CELLS)] for _ in range(5)]
        shape = self.draw.choice(("gfm", "gfm", "open", "html", "wide"))
        if shape == "html":
            body = "\n".join(f"<tr><td>{a}</td>\n<td>{b}</td></tr>" for a, b in rows)
            return self.add(f"<table>\n<tr><th>选项</th><th>说明</th></tr>\n{body}\n</table>")
        if shape == "open":
            lines = ["选项 | 说明", ":--- | ---:", *(f"{a} | {b}" for a, b in rows)]
        elif shape == "wide":
            lines = ["| 选项     | 说明        |", "| -------- | ---------- |"]
            lines += [f"| {a:12} | {b:20} |" for a, b in rows]
        else:
            lines = ["| 选项 | 说明 |", "|---|---|", *(f"|{a}|{b}|" for a, b in rows)]
        return self.add("\n".join(lines))

    def steps(self) -> None:
        mark = self.draw.choice(("1. ", "* ", "- ", "  1. ", "*   ", "1、", "(1) "))
        items = []
        for at in range(self.draw.randint(2, 5)):
            number = mark.replace("1", str(at + 1))
            items.append(number + self.text_of(1))
            if mark == "1. " and self.draw.random() < 0.4:
                code = f"```\n{self.listing()}\n```".replace("\n", "\n   ")
                self.constructs.append(code)
                items.append(f"\n   {code}\n")
        self.blocks.append("\n".join(items))

    def quote(self) -> None:
        lines = ["> " + self.text_of(2)]
        if self.draw.random() < 0.5:
            listing = "\n".join("> " + line for line in self.listing().split("\n"))
            lines += [">", f"> ```\n{listing}\n> ```", ">", "> " + self.text_of(1)]
        self.blocks.append("\n".join(lines))

    def links(self) -> None:
        """A list of links, in which there is no sentence."""
        names = (self.fill("* [{a} 的文档][{m}]") for _ in range(self.draw.randint(3, 8)))
        self.add("\n".join(names))

    # -- ends -------------------------------------------------------------------------------

    def head(self) -> None:
        if self.draw.random() < 0.5:
            keys = ("collector: (editor)", "translator: (someone)", "reviewer: ( )", "url: ( )")
            self.add("\n".join(f"[#]: {key}" for key in keys))
        title = self.fill(self.draw.choice(TITLES))
        underline = self.draw.choice(("======", "=" * 80, "======", "-" * 20))
        gap = self.draw.choice(("", "\n"))
        self.constructs.append(f"{title}\n{underline}")
        self.blocks.append(f"{title}\n{underline}\n{gap}{self.text_of(2)}")

    def foot(self) -> None:
        credits = [self.fill(line) for line in CREDITS]
        if self.draw.random() < 0.3:
            credits[-2:] = [credits[-2] + " " + credits[-1]]
        lines = [credits[0], "", *credits[1:], ""]
        lines.append(
            "本文由 [LCTT](https://github.com/LCTT/TranslateProject) 原创编译，"
            "[Linux中国](https://linux.cn/) 荣誉推出"
        )
        if self.draw.random() < 0.85:
            lines[:0] = ["-" * 80, ""]
        if self.draw.random() < 0.25:
            lines[:0] = ["作者简介：", "", self.text_of(2), "", "------", ""]
        colon = self.draw.choice((": ", ":"))
        defined = [f"[a]{colon}https://example.com/author/{self.draw.randint(1, 99)}"]
        shape = "https://example.com/20{n}/{p}-{k}/{port}?itok=r{p}7 (Screenshot of {p}.)"
        defined += [
            f"[{at}]{colon}{self.fill(shape)}" for at in range(1, self.draw.choice((4, 12, 60)))
        ]
        tight = self.blocks[-1].endswith("```") and self.draw.random() < 0.5
        foot = "\n".join(lines) + "\n\n" + "\n".join(defined) + "\n"
        self.constructs += credits + defined
        if tight:
            self.blocks[-1] += "\n" + foot
        else:
            self.blocks.append(foot)


def article(seed: int, sentences: Sequence[str] = ()) -> Article:
    """An article.

    Args:
        sentences: sentences to use, before those that are made up.
    """
    writer = _Writer(seed, sentences)
    draw = writer.draw
    parts: list[Callable[[], None]] = [
        writer.fence, writer.indented, writer.picture, writer.heading, writer.table, writer.steps,
        writer.quote, writer.links, writer.paragraph, writer.bare,
    ]  # fmt: skip
    weights = [draw.random() for _ in parts]
    writer.head()
    for _ in range(draw.randint(5, 10)):
        writer.paragraph()
        draw.choices(parts, weights)[0]()
    writer.foot()
    separator = draw.choice(("\n\n", "\n\n", "\n\n\n"))
    return Article(separator.join(writer.blocks), writer.sentences, writer.constructs)

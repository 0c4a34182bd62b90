"""Blocks of markup, compared with markdown-it-py and with what authors write."""

from __future__ import annotations

from importlib.metadata import distributions
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bc2.data.prep.text.markup.block import BlockKind
from bc2.data.prep.text.markup.blocks import blocks
from bc2.data.prep.text.markup.prose_or_code import is_prose

PROSE = [
    "The river rose by night, and nobody saw the bridge go.\n",
    "水在夜里涨了上来，没有人看见桥倒塌。\n",
    "A first line that is wrapped near the margin by its writer\nand goes on here.\n",
    "- one item of a list\n- another item\n",
    "1. Press the button.\n2. Wait.\n",
    "> quoted words of another\n> on two lines\n",
]
BLOCKS = [
    "# A heading\n",
    "### 另一个标题\n",
    "A title\n=======\n",
    "标题\n---\n",
    "```bash\npip install x\n\n# no heading\n```\n",
    "~~~\n| no | table |\n|---|---|\n~~~\n",
    "````md\n```\ninner\n```\n````\n",
    "> ```\n> quoted code\n> ```\n",
    "1. Do this:\n\n   ```python\n   print(1)\n   ```\n",
    "- ```\n  in an item\n  ```\n",
    "| a | b |\n|---|:-:|\n| 1 | 2。 |\n",
    "a | b\n--|--\n1 | 2\n",
    "    x = f(y);\n    return x;\n",
    "***\n",
    "[1]: https://example.com/a_b\n",
    "<!-- a remark\n\n# no heading -->\n",
]


def markdown_lines(text: str) -> dict[str, set[int]]:
    """The lines of each kind of block, by markdown-it-py."""
    kinds = {"fence": "code", "code_block": "code", "table_open": "table"}
    kinds |= {"heading_open": "heading", "hr": "rule"}
    found: dict[str, set[int]] = {}
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type in kinds and token.map:
            found.setdefault(kinds[token.type], set()).update(range(*token.map))
    return {kind: {line for line in lines if _filled(text, line)} for kind, lines in found.items()}


def our_lines(text: str) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for start, end, kind in blocks(text):
        first = text.count("\n", 0, start)
        lines = range(first, first + text.count("\n", start, end))
        # Tables of HTML and reStructuredText are no tables to Markdown.
        others = text[start:end].lstrip().startswith(("<", "="))
        if kind.value in ("code", "table", "heading", "rule") and not others:
            found.setdefault(kind.value, set()).update(n for n in lines if _filled(text, n))
    return found


def _filled(text: str, line: int) -> bool:
    return bool(text.split("\n")[line].strip())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PROSE + BLOCKS), min_size=1, max_size=8))
def test_blocks_are_those_of_a_markdown_parser(pieces):
    # Each piece is followed by a paragraph, so that none goes on in the next.
    text = "".join(f"{piece}\nSo much for this, and now the next.\n\n" for piece in pieces)
    assert our_lines(text) == markdown_lines(text)


def test_blocks_of_real_descriptions_are_those_of_a_markdown_parser():
    """Lines of headings and tables of all installed packages' READMEs."""
    same = differ = 0
    for distribution in distributions():
        described = distribution.metadata
        if described is None or "markdown" not in (described["Description-Content-Type"] or ""):
            continue
        text = described.get_payload() or described["Description"] or ""
        if not isinstance(text, str):
            continue
        theirs, ours = markdown_lines(text), our_lines(text)
        for kind in ("heading", "table"):
            one, two = theirs.get(kind, set()), ours.get(kind, set())
            same += len(one & two)
            differ += len(one ^ two)
    assert same > 200
    assert differ <= 0.01 * same


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab。 \n\t`~#=-|>$[]():<!.*1"), max_size=120))
def test_blocks_cover_the_text(text):
    found = blocks(text)
    assert "".join(text[start:end] for start, end, _ in found) == text
    assert all(end == 0 or text[end - 1] == "\n" for _, end, _ in found[:-1])
    kinds = [kind for *_, kind in found]
    assert all({*pair} != {BlockKind.TEXT} for pair in pairwise(kinds))


def kinds_of(text: str) -> list[tuple[str, str]]:
    return [(kind.value, text[start:end].strip("\n")) for start, end, kind in blocks(text)]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("---\ntitle: x\ntags:\n  - y\n---\n\nText.\n", ["matter", "text"]),
        ("[#]: collector: (x)\n[#]: via: (https://e.org)\n\nTitle\n====\n", ["address"] * 2),
        ("From: a\nTo: b\nSubject: c\n\nHello you.\n\n-- \nJo\n", ["matter", "text", "matter"]),
        ("Note: this is prose.\nIt goes on.\n", ["text"]),
        ("正文。\n\n-----------\n\nvia: https://e.org\n\n作者：[A][a]\n", ["text", "matter"]),
        ("Text.\n\n---\n\nMore prose stands here.\n", ["text", "rule", "text"]),
        ("Use it::\n\n  pip install x\n\nDone.\n", ["text", "code", "text"]),
        (".. image:: a.png\n   :alt: b\n\nText.\n", ["code", "text"]),
        (".. |x| image:: a.png\n   :target: b\n\nText.\n", ["address", "text"]),
        (".. note:: Read this.\n\n   It is prose, and it is the body.\n", ["code", "text"]),
        ("=====\nTitle\n=====\n\nText.\n", ["heading", "text"]),
        ("+---+---+\n| a | b |\n+---+---+\n", ["table"]),
        ("=== ===\na   b\n=== ===\n1   2\n=== ===\n\nText.\n", ["table", "text"]),
        ("----\n$ git log\n----\n\nText.\n", ["code", "text"]),
        ("$ make\ngcc -c a.c\n\nText.\n", ["code", "text"]),
        (">>> f(1)\n2\n\nText.\n", ["code", "text"]),
        (">>> said he, and it was the end\n", ["text"]),
        ("![a。b](c.png)\nText.\n", ["address", "text"]),
        ("https://e.org/a\n\nText.\n", ["address", "text"]),
        ("[![b](c)](d) [![e](f)](g)\n", ["address"]),
        ("<p align=center>\n<img src=a>\n</p>\n\nText.\n", ["html"] * 3),
        ("<pre>\ncode\n</pre>\nText.\n", ["code", "text"]),
        ("$$\nx = y\n$$\n\n正文\n", ["code", "text"]),
        ("$$x = y$$．\n\n正文\n\n$$\nz\n$$\n", ["code", "text", "code"]),
        ("!!! note\n    This is prose, and it belongs to the note.\n", ["heading", "text"]),
        ("```\nnever closed\n\nText.\n", ["code"]),
        ("\n\n  \nText.\n", ["text"]),
        ("[1]:https://e.org/a\n[b]:/c\n\nText.\n", ["address", "address", "text"]),
        ("[注]:这里说明一下。\n", ["text"]),
        ("正文。\n\n1.  $$\n    x = y\n    $$\n\n正文。\n", ["text", "code", "text"]),
        ("via: https://e.org/a\n\n作者：[A B][a]\n译者：[c](d) 校对：[e](f)\n", ["address"] * 3),
        ("作者：某人写的[书](a)很好。\n", ["text"]),
        ("FC\n--\n\nThe compiler.\n", ["heading", "text"]),
    ],
)
def test_what_authors_write(text, kinds):
    found = [kind for kind, _ in kinds_of(text)]
    assert found[: len(kinds)] == kinds


@pytest.mark.parametrize(
    "prose",
    [
        "He said that the river was wide, and the bridge was gone.",
        "帘外雨潺潺，春意阑珊。",
        "John Smith",
    ],
)
def test_indented_prose_is_text(prose):
    assert is_prose([f"    {prose}"])
    assert [kind for kind, _ in kinds_of(f"A line.\n\n    {prose}\n")] == ["text"]


@pytest.mark.parametrize(
    "code",
    ["pip install x", "int n; // 序列长度", "$ ls", "x = {'a': 1}", "./configure", "-DUSE_X=1 foo"],
)
def test_indented_code_is_code(code):
    assert not is_prose([f"    {code}"])
    assert [kind for kind, _ in kinds_of(f"A line.\n\n    {code}\n")] == ["text", "code"]


OUTPUT = "You can turn off this feature to get a quicker startup"


@pytest.mark.parametrize(
    "lines",
    [
        ["$ sudo x", "", OUTPUT, "", "3 rows."],
        ["# ./sum.sh", "", "Usage is as follows"],
        ["+---+---+", "| a | b |", "+---+---+", "1 row in set (0.06 sec)"],
        ["if x:", "", "# 把两个数加起来", "    y = f(x)"],
        [OUTPUT],
    ],
)
@pytest.mark.parametrize("blank", ["", "    "])
def test_code_of_chinese_texts_goes_on_after_blank_lines(lines, blank):
    code = "\n".join(f"    {line}" if line else blank for line in lines)
    kinds = kinds_of(f"输出如下。\n\n{code}\n\n这就是全部的结果，没有别的了。\n")
    assert {kind for kind, _ in kinds[1:-1]} <= {"code", "table"}
    assert [kinds[0][0], kinds[-1][0]] == ["text"] * 2


@pytest.mark.parametrize(
    "prose",
    [
        "-   对称性：若 $a\\equiv b\\pmod m$，则 $b\\equiv a\\pmod m$．",
        "把设置写到 /etc/cron.hourly/, /etc/cron.daily/ 和 /etc/cron.weekly/ 目录里。",
        "-   `st.top()` 返回栈顶",
        "详见 [保存](#SAVE-1) 和 **说明**．",
    ],
)
def test_indented_chinese_with_formulas_and_paths_is_text(prose):
    assert [kind for kind, _ in kinds_of(f"正文。\n\n    {prose}\n")] == ["text"]


RULE = "-" * 80


@pytest.mark.parametrize("before", ["正文。\n\n", "```\nx\n```\n", "正文。\n"])
@pytest.mark.parametrize("links", [0, 3, 120])
def test_footers(before, links):
    defined = "".join(f"[{at}]:https://e.org/{at}\n" for at in range(links))
    footer = f"{RULE}\n\nvia: https://e.org\n\n本文由 [L](a) 编译，[C](b) 推出\n\n{defined}"
    assert kinds_of(before + footer)[-1] == ("matter", footer.strip("\n"))

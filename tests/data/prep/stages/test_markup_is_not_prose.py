"""Documents with markup through the stages that judge and cut: markup is not prose."""

from __future__ import annotations

import pyarrow as pa
import pytest

from bc2.data.prep.heuristics_settings import HeuristicsSettings
from bc2.data.prep.settings import PassagesSettings, QualitySettings
from bc2.data.prep.stages.heuristics import HeuristicsStage
from bc2.data.prep.stages.passages import PassagesStage
from bc2.data.prep.stages.quality import QualityStage
from bc2.data.prep.text.sentences import split_sentences

GOOD_ZH = [
    "这个命令会先检查系统里已经安装的软件包，然后按照依赖关系依次更新它们。",
    "如果网络比较慢，可以先换成离你最近的镜像，再重新运行一遍同样的步骤。",
    "作者在文章里比较了两种办法，并且说明了为什么第二种更适合新手使用。",
    "在编辑器中打开刚才下载的文件，把里面的用户名改成你自己的名字就行了。",
    "许多人以为这样做会丢失数据，其实程序在写入之前总会留下一份备份。",
    "这一节介绍怎样把日志送到另一台机器上，以便日后查找出错的原因。",
    "早期的版本只能在一种硬件上运行，后来社区的开发者把它移植到了别处。",
    "要是屏幕上什么也没有出现，请看看电源是否接好，线缆有没有松动。",
    "我第一次接触开源软件是在大学里，那时身边很少有人听说过这个名字。",
    "测试表明，内存较小的电脑也能流畅播放，不过启动的时间会长一些。",
    "你不需要成为管理员就可以完成安装，因为所有文件都放在个人目录中。",
    "最后别忘了关闭远程登录，否则任何知道密码的人都可能进入你的系统。",
]
GOOD_EN = [
    "The server reads the file once, and it keeps the result until the next request.",
    "If the build fails, look at the log first, since it names the package that is missing.",
    "You can run the same command again, because it does not change what is there already.",
    "Most readers will want the second form, which is shorter and works on every system.",
    "Earlier releases stored their settings elsewhere, so an old machine may still have both.",
    "Nothing is sent over the network unless you have asked for it in the options above.",
    "A colleague once lost a week of work this way, and it was never found out why.",
    "When the window opens, choose the folder in which your pictures were saved before.",
    "The two libraries look alike, but only one of them has been maintained for years.",
    "Write the name of the host on the first line, and leave the others as they are.",
    "It is not hard to see that the loop ends, although the proof takes some patience.",
    "Finally, remove the old copy, or the next person will wonder which of them is right.",
]
PROSE = {"zh": GOOD_ZH, "en": GOOD_EN}
LINKS = "".join(
    f"[{n}]: https://example.org/wp-content/{n}/a-long-path-{n}.png\n" for n in range(12)
)


def judged(text: str, lang: str, records) -> tuple[str | None, list[str]]:
    """What heuristics and quality leave of a text, and their reasons."""
    found = []
    table = records([text], lang=lang)
    for stage in (HeuristicsStage(HeuristicsSettings()), QualityStage(QualitySettings())):
        outcome = stage.apply(table, None)
        found += outcome.removed["reason"].to_pylist()
        table = outcome.table
    return (table["text"][0].as_py() if len(table) else None), found


BLOCKS = {
    "link definitions": LINKS,
    "pictures": "".join(f"![][{n}]\n" for n in range(30)),
    "addresses": "".join(f"https://example.org/a/{n}.html\n\n" for n in range(20)),
    "a table": "| name | value |\n|---|---|\n" + "| `x_y` | 0x7f。9 |\n" * 20,
    "fenced code": "```\n" + "for (i=0;i<n;i++){ a[i]=b[i]^c[i]; }\n" * 20 + "```\n",
    "indented code": "    x1 = y2; z3 = {};\n    return;\n" * 10,
    "output": "```\n$ ls\n$ ls\n$ ls\n}\n}\n}\n```\n",
    "front matter": "",
    "filler in code": "```html\n<p>Lorem ipsum dolor sit amet</p>\n```\n",
    "a long address": f"![p](data:image/png;base64,{'iVBORw0KGgo' * 60})\n",
    "a footer": "-----\n\nvia: https://example.org/a\n\n作者：[A][a] 译者：[b](https://e.org/b)\n",
}


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_change_no_verdict_and_lose_nothing(name, lang, records):
    front = "---\ntitle: x\ntags: [a, b]\n---\n\n" if name == "front matter" else ""
    text = front + "\n\n".join([*PROSE[lang], BLOCKS[name]])
    assert judged(text, lang, records) == (text, [])


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_a_sentence_and_a_command_twelve_times(lang, records):
    commands = [f"```bash\nsudo apt install package-{n}\n```" for n in range(12)]
    pairs = zip(PROSE[lang], commands, strict=True)
    text = "\n\n".join(part for pair in pairs for part in pair)
    assert judged(text, lang, records) == (text, [])


def test_junk_in_lists_and_links_is_still_dropped(records):
    menu = "".join(f"- [Item {n}](/a/{n})\n" for n in range(40))
    stuffed = "- cheap shoes, best shoes, shoes online\n" * 40
    broken = "\n\n".join(["ä¸­å½äººæ°å±åå½æ¯å·¥äººé¶çº§"] * 9)
    for text in (menu, stuffed, broken):
        left, reasons = judged(text, "en", records)
        assert left is None, reasons


def test_scores_of_markup_are_null(records):
    text = f"{GOOD_EN[0]}\n\n```\ncode\n```\n\n{GOOD_EN[1]}\n"
    table = QualityStage(QualitySettings()).apply(records([text], lang="en"), None).table
    row = table.to_pylist()[0]
    assert len(row["sentence_scores"]) == len(split_sentences(text)) == 3
    assert [score is None for score in row["sentence_scores"]] == [False, True, False]
    assert row["paragraph_scores"][1] is None
    assert row["quality"] > 0.8
    alone = QualityStage(QualitySettings()).apply(records(["```\nx\n```\n"], lang="en"), None)
    assert alone.table["quality"].to_pylist() == [None]


def test_passages_leave_fences_and_tables_whole(records, run_stage):
    fence = (
        "```\n" + "the same long line of code stands in every article here;\n" * 4 + "\nx\n```\n"
    )
    rows = "| a | b |\n|---|---|\n" + "| the same row in every article | 值 |\n" * 6
    texts = [
        f"{GOOD_EN[0]} Article {n} says it.\n\n{fence}\n{'Notes differ here. ' * n}\n\n{rows}"
        for n in range(1, 6)
    ]
    stage = PassagesStage(PassagesSettings(sentence_repeats=2, max_lost=1.0))
    (outcome,), _ = run_stage(stage, [records(texts, lang="en")])
    left = outcome.table["text"].to_pylist()
    assert len(left) == 5
    assert all(fence in text for text in left)
    assert all(rows in text for text in left)


def test_languages_are_named_by_their_beginning(records):
    junk = "XK9@@##qW%%zz^^Rt~~pLNbV## " * 9
    table = pa.concat_tables(
        [records([junk], first=n, lang=lang) for n, lang in enumerate(["en-US", "EN", "zh_Hans"])]
    )
    outcome = QualityStage(QualitySettings()).apply(table, None)
    assert outcome.removed["reason"].to_pylist() == ["low_quality"] * 3

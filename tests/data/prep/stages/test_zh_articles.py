"""Chinese technical articles in Markdown through the stages that judge and cut text."""

import gzip
import json
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from zh_articles import article

from bc2.data.prep.heuristics_settings import HeuristicsSettings
from bc2.data.prep.settings import PassagesSettings, QualitySettings
from bc2.data.prep.stages.heuristics import HeuristicsStage
from bc2.data.prep.stages.passages import PassagesStage
from bc2.data.prep.stages.quality import QualityStage
from bc2.data.prep.text.markup.block import BlockKind
from bc2.data.prep.text.markup.blocks import blocks
from bc2.data.prep.text.sentences import cut_sentences, divide, prose_sentences

ARTICLES = [article(seed) for seed in range(40)]
CORPUS = Path("../shared/data/corpus/zh_tech_wiki_docs.jsonl.gz")


def judged(table):
    """What heuristics and quality remove from a table, and the table that is left."""
    first = HeuristicsStage(HeuristicsSettings()).apply(table, None)
    second = QualityStage(QualitySettings()).apply(first.table, None)
    return first.removed.to_pylist() + second.removed.to_pylist(), second.table


def blocks_of(text):
    """The blocks that are not text, without the blank lines after them."""
    found = ((each.kind, text[each.start : each.end].strip()) for each in blocks(text))
    return [(kind, block) for kind, block in found if kind is not BlockKind.TEXT]


def test_articles_stay_as_they_are(records):
    texts = [each.text for each in ARTICLES]
    gone, left = judged(records(texts, lang="zh"))
    assert not gone
    assert left["text"].to_pylist() == texts
    assert min(left["quality"].to_pylist()) > 0.9


def test_every_sentence_is_prose_and_no_construct_is():
    for each in ARTICLES:
        prose = "".join(prose_sentences(each.text))
        for sentence in each.sentences:
            shown = re.sub(r"\[\d+\]|`[^`]*`|[*\[\]]|<[^<>]*>", "", sentence)
            assert shown in prose.replace("[", "").replace("]", "")
        for shape in ("https://", "|---", "[#]:", "作者：", "译者：", "Filesystem", "# If two"):
            assert shape not in prose


def test_cuts_leave_every_block_as_it_is():
    draw = random.Random(5)
    for each in ARTICLES:
        keep = [
            not paragraph.is_text or draw.random() < 0.6
            for paragraph in divide(each.text)
            for _ in paragraph.sentences
        ]
        left = cut_sentences(each.text, keep)
        assert left != each.text
        assert blocks_of(left) == blocks_of(each.text)


def test_passages_cut_only_prose(records, run_stage):
    texts = []
    for number, each in enumerate(ARTICLES[:20]):
        copy = each.text
        for sentence in each.sentences[::3]:
            copy = copy.replace(sentence, f"这一句话只在第 {number} 篇文章的第二版里出现过。")
        texts += [each.text, copy]
    stage = PassagesStage(PassagesSettings(sentence_repeats=2))
    (outcome,), facts = run_stage(stage, [records(texts, lang="zh")])
    assert facts["cut_sentences"] > 100
    assert len(outcome.table) == len(texts)
    for pos, left in zip(*map(outcome.table.column, ("pos", "text")), strict=True):
        assert blocks_of(left.as_py()) == blocks_of(texts[pos.as_py()])


LEADS = ("运行下面的命令", "然后检查一下结果。", "你会看到如下的输出", "输入：")


@pytest.mark.parametrize("lead", LEADS)
def test_what_introduces_code_may_be_said_again_and_again(records, lead):
    texts = [
        f"{first.sentences[0]}\n\n{lead}\n\n    $ make test\n\n{first.sentences[1]}\n\n{lead}\n\n"
        f"```\nok\n```\n\n{second.sentences[2]}\n\n{lead}\n\n    PASS\n"
        for first, second in pairwise(ARTICLES[:8])
    ]
    gone, _ = judged(records(["\n".join(texts)], lang="zh"))
    assert not gone


MENU = ("首页", "新闻", "产品", "服务", "关于", "联系", "登录", "注册", "帮助", "地图")
MOJIBAKE = "鐨勭殑銆鍦鏄 ä¸­å\x9b½äººæ°\x91 å\x85±å\x92\x8cå\x9b½ é\x94\x9f鏂ゆ嫹锟斤拷锟斤拷 "
JUNK = {
    "menu of links": "\n".join(f"* [{word}](https://e.com/{word})" for word in MENU * 6),
    "menu in a list": "\n".join(f"- {word}" for word in MENU * 6),
    "menu in quotations": "\n\n".join(f"> **{word}**\n> {word}更多" for word in MENU * 4),
    "notices": "\n\n".join(
        ("# 公告", *(f"* 版权所有，未经许可不得转载 {year}" for year in range(2000, 2012)))
    ),
    "keywords": "## 标签\n\n" + "- " + "系统下载免费破解版安装教程，" * 40,
    "mojibake": "标题\n====\n\n" + "\n\n".join(f"* {MOJIBAKE * 3}" for _ in range(8)),
    "repeated lines": "标题\n====\n\n"
    + "\n".join("1. 点击下方按钮立即领取大礼包！" for _ in range(30)),
    "addresses": "# 号码\n\n" + "\n".join(f"- {at * 7919} {at * 104729}" for at in range(60)),
    "script": "# 页面\n\n" + "var hm = document.createElement('script');\n(function() {})();\n" * 9,
    "headlines": "\n".join(f"* [第{at}代新品发布 股价大涨引关注](/{at})" for at in range(60)),
    "way here": "您的位置：[首页](/) > [教程](/t)\n\n上一篇：[安装](/1)\n\n下一篇：[卸载](/2)\n\n"
    + "\n".join(f"* [文章{at}](/{at})" for at in range(30)),
    "noise": "标题\n====\n\n"
    + "\n\n".join("> XK9@@##qW%%zz^^Rt~~pL$$mN**bV## " for _ in range(20)),
}


@pytest.mark.parametrize("name", JUNK)
def test_junk_is_dropped_in_markdown_too(records, name):
    gone, left = judged(records([JUNK[name]], lang="zh"))
    assert [row["whole"] for row in gone] == [True]
    assert len(left) == 0


@pytest.mark.slow
def test_real_sentences_stay_in_articles(records):
    if not CORPUS.is_file():
        pytest.skip(f"no {CORPUS}")
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][:2000]
    pattern = re.compile(r"(?<=[。\n])[\u4e00-\u9fff][^。\n$<|*`]{12,120}。")
    found = sorted({sentence for text in texts for sentence in pattern.findall(text)})
    random.Random(3).shuffle(found)
    made = [article(seed, found[seed * 40 :][:40]) for seed in range(300)]
    gone, left = judged(records([each.text for each in made], lang="zh"))
    assert sum(row["whole"] for row in gone) <= 1
    lost = sum(
        sentence not in text.as_py()
        for pos, text in zip(*map(left.column, ("pos", "text")), strict=True)
        for sentence in made[pos.as_py()].sentences
    )
    assert lost < sum(len(each.sentences) for each in made) / 1000

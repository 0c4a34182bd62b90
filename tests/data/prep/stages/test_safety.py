import hashlib
import os
import pickle
import random
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bc2.data.prep.settings import SafetySettings, WordListSettings
from bc2.data.prep.stages.base import REMOVED
from bc2.data.prep.stages.safety import SafetyStage, UrlList, WordList, read_list
from bc2.data.prep.text.sentence_scorer import train_scorer
from bc2.errors import DataError


def words_of(folder, entries, **given_settings):
    path = folder / f"words-{hashlib.sha256(repr(entries).encode()).hexdigest()[:12]}.txt"
    path.write_text("# a list\n\n" + "\n".join(entries) + "\n", encoding="utf-8")
    return WordListSettings(name="list", path=str(path), **given_settings)


def run(table, **given_settings):
    return SafetyStage(SafetySettings(**given_settings)).apply(table, None)


def test_words_match_as_words_and_cjk_anywhere(tmp_path):
    words = WordList(words_of(tmp_path, ["bad", "very bad", "赌博", "naïve", "c++"]))
    assert words.find("A BAD thing, bad; badly, abad, bad_ 中bad文") == {"bad": 3}
    assert words.find("very  bad very bad") == {"bad": 2, "very bad": 1}
    assert words.find("在线赌博网站赌博") == {"赌博": 2}
    assert words.find("Naïve c++ c++11 xc++") == {"naïve": 1, "c++": 2}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("ab中文"), min_size=1, max_size=4), min_size=1, max_size=6),
    st.text(st.sampled_from("ab中文 ,AB"), max_size=40),
)
def test_words_are_those_of_a_naive_search(tmp_path_factory, entries, text):
    folder = tmp_path_factory.mktemp("words")
    found = WordList(words_of(folder, entries)).find(text)
    low = text.casefold()

    def joined(at):
        return 0 < at < len(low) and low[at - 1] in "ab" and low[at] in "ab"

    for word in set(entries):
        places = [i for i in range(len(low)) if low.startswith(word, i)]
        assert found[word] == sum(not joined(i) and not joined(i + len(word)) for i in places)


def test_limits_of_a_list(tmp_path, records):
    texts = ["bad " * 2 + "fine " * 8, "bad " * 3 + "fine " * 7, "bad " * 3 + "好" * 997]
    lists = (words_of(tmp_path, ["bad"], min_count=3, min_density=5.0),)
    table, removed, _ = run(records(texts), word_lists=lists)
    assert table["pos"].to_pylist() == [0, 2]
    (row,) = removed.to_pylist()
    assert row["reason"] == "word_list"
    assert row["detail"] == "list: bad 3"
    assert (row["bytes"], row["whole"]) == (len(texts[1]), True)
    assert removed.schema == REMOVED


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see http://bad.example/x", "bad.example/x"),
        ("see www.bad.example.", "www.bad.example"),
        ("见a.b.BAD.example。", "a.b.BAD.example"),
        ("notbad.example bad.example.org", None),
        ("https://half.example/evil/page", "half.example/evil/page"),
        ("https://half.example/good half.example", None),
        ("no host here", None),
        ("mail@bad.example:8080/x", "bad.example:8080/x"),
        ("a_a_.____.bad.example", "a_a_.____.bad.example"),
        (f"{'a.' * 300}bad.example", f"{'a.' * 300}bad.example"),
        ("...bad.example...", None),
        ("(bad.example)-bad.example", "bad.example"),
    ],
)
def test_hosts_and_urls(tmp_path, text, found):
    path = tmp_path / "urls.txt"
    path.write_text("https://www.bad.example\nhalf.example/evil\n", encoding="utf-8")
    hit = UrlList([str(path)]).find(text)
    assert (hit and hit.detail) == found
    assert hit is None or text[hit.place :].startswith(hit.detail)


def test_patterns(records):
    texts = ["nothing", "code 007-x", "code 008-y"]
    table, removed, _ = run(records(texts), patterns={"agent": r"\b00[78]-[xy]", "other": "zzz"})
    assert table["text"].to_pylist() == ["nothing"]
    assert removed["reason"].to_pylist() == ["pattern:agent"] * 2
    assert removed["detail"].to_pylist() == ["007-x", "008-y"]
    mail = "Write to ann.lee@corpmail.org for it."
    _, removed, _ = run(records([mail]), patterns={"who": r"ann\.lee@corp\w+"})
    assert removed["detail"].to_pylist() == ["[EMAIL]"]
    stage = SafetyStage(SafetySettings(patterns={"agent": "x"}))
    assert "pattern:agent" in stage.reasons
    assert "pattern:agent" not in SafetyStage.reasons


def test_personal_data_are_masked(records):
    texts = ["Ask jo@shop.org or al@shop.org, 81.2.69.142.", "none"]
    table, removed, _ = run(records(texts))
    assert table["text"].to_pylist() == ["Ask [EMAIL] or [EMAIL], [IP].", "none"]
    rows = {row["reason"]: row for row in removed.to_pylist()}
    assert set(rows) == {"personal_email", "personal_ip"}
    assert rows["personal_email"]["bytes"] == 22
    assert not rows["personal_email"]["whole"]
    assert "shop" not in rows["personal_email"]["detail"]


def test_personal_data_kept_dropped_or_masked_otherwise(records):
    texts = ["Ask jo@shop.org, 81.2.69.142.", "none"]
    assert run(records(texts), personal="keep").table["text"].to_pylist() == texts
    dropped = run(records(texts), personal="drop")
    assert dropped.table["text"].to_pylist() == ["none"]
    assert dropped.removed["reason"].to_pylist() == ["personal_email"]
    assert dropped.removed["detail"].to_pylist() == ["email, ip"]
    other = run(records(texts), mask="<|{kind}|>", kinds=("ip",))
    assert other.table["text"][0].as_py() == "Ask jo@shop.org, <|ip|>."


def test_code_keeps_its_numbers(records):
    text = 'HOST = "81.2.69.142"  # jo@shop.org'
    assert run(records([text], lang="code")).table["text"][0].as_py() == (
        'HOST = "81.2.69.142"  # [EMAIL]'
    )


def test_scores_stay_in_step_or_go(records):
    texts = ["Ask jo@shop.org. Then go.", "Fine. Good."]
    scores = [[0.5, 0.75], [1.0, 0.25]]
    table = run(records(texts, sentence_scores=scores)).table
    assert table["sentence_scores"].to_pylist() == scores
    wrong = run(records(texts, sentence_scores=[[0.5], [1.0, 0.25]])).table
    assert wrong["sentence_scores"].to_pylist() == [None, [1.0, 0.25]]


def test_a_classifier(tmp_path, records):
    safe = [f"The gentle gardener number {i} waters the roses at noon." for i in range(300)]
    harm = [f"The vile schemer number {i} poisons the wells at dusk." for i in range(300)]
    train_scorer(safe, harm, tmp_path, seed=1)
    texts = [" ".join(safe[:5]), " ".join(harm[:5]), safe[7]]
    stage = SafetyStage(SafetySettings(classifier=str(tmp_path)))
    table, removed = pickle.loads(pickle.dumps(stage)).apply(records(texts), None)[:2]
    assert table["pos"].to_pylist() == [0, 2]
    assert removed["reason"].to_pylist() == ["unsafe"]
    assert {name.partition(":")[0] for name in stage.digests()} == {"classifier"}


def test_the_result_does_not_depend_on_the_part(tmp_path, records):
    chance = random.Random(2)
    pool = ["fine words", "bad", "jo@shop.org", "赌博", "81.2.69.142", "x.bad.example", "\n"]
    texts = [" ".join(chance.choices(pool, k=4)) for _ in range(50)]
    lists = (words_of(tmp_path, ["bad", "赌博"], min_count=2),)
    stage = SafetyStage(SafetySettings(word_lists=lists))
    table = records(texts)
    whole = stage.apply(table, None)
    alone = [stage.apply(table.slice(i, 1), None) for i in range(50)]
    assert pa.concat_tables([each.table for each in alone]).equals(whole.table)
    assert pa.concat_tables([each.removed for each in alone]).equals(whole.removed)
    assert 0 < len(whole.table) < 50
    assert len(stage.apply(table.slice(0, 0), None).table) == 0


def test_files_are_checked_before_work(tmp_path):
    missing = WordListSettings(name="none", path=str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"none\.txt"):
        SafetyStage(SafetySettings(word_lists=(missing,))).check()
    with pytest.raises(DataError):
        SafetyStage(SafetySettings(url_lists=(missing.path,))).digests()
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="no entry"):
        read_list(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_list(tmp_path / "latin.txt")
    (tmp_path / "gbk.txt").write_bytes("赌博\n彩票\n色情\n诈骗电话\n代开发票\n".encode("gbk"))
    with pytest.raises(DataError, match="the file is likely in gb18030"):
        read_list(tmp_path / "gbk.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match="a pipe and not a file"):
        read_list(tmp_path / "pipe.txt")
    (tmp_path / "joined.txt").write_bytes("\ufeff# one\nbad\n\ufeff# two\n\ufeffworse\n".encode())
    assert read_list(tmp_path / "joined.txt") == ["bad", "worse"]
    with pytest.raises(DataError):
        SafetyStage(SafetySettings(classifier=str(tmp_path / "no"))).check()
    listed = words_of(tmp_path, ["bad"])
    digests = SafetyStage(SafetySettings(word_lists=(listed,))).digests()
    content = (tmp_path / listed.path).read_bytes()
    assert digests == {"word_list:list": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"patterns": {"p": "("}}, "'p' is no regular expression"),
        ({"patterns": {"p": "a*"}}, "matches any text"),
        ({"mask": "{name}"}, "mask may hold"),
        ({"mask": "{"}, "mask may hold"),
        ({"kinds": ("nose",)}, "nose"),
    ],
)
def test_impossible_settings(wrong, says):
    with pytest.raises(ValidationError) as caught:
        SafetySettings(**wrong)
    assert says in str(caught.value)


def test_two_lists_of_one_name(tmp_path):
    one = words_of(tmp_path, ["bad"])
    with pytest.raises(ValidationError, match="two word lists"):
        SafetySettings(word_lists=(one, one))


@pytest.mark.parametrize(
    ("text", "settings_of", "begins"),
    [
        ("İİ fine, then BAD words", "words", "BAD"),
        ("cafe\u0301 plain na\u0131ve, Nai\u0308ve", "words", "Nai\u0308ve"),
        ("see https://www.bad.example/x now", "urls", "www.bad.example"),
        ("nothing but code 007-x", "patterns", "007-x"),
        ("aa jo@shop.org and 81.2.69.142, al@shop.org", "drop", "jo@shop.org"),
    ],
)
def test_a_drop_says_where(tmp_path, records, text, settings_of, begins):
    urls = tmp_path / "urls.txt"
    urls.write_text("bad.example\n", encoding="utf-8")
    given = {
        "words": {"word_lists": (words_of(tmp_path, ["bad", "naïve"]),)},
        "urls": {"url_lists": (str(urls),)},
        "patterns": {"patterns": {"agent": r"\b007-x"}},
        "drop": {"personal": "drop"},
    }[settings_of]
    (row,) = run(records([text]), **given).removed.to_pylist()
    assert row["whole"]
    assert text[row["place"] :].startswith(begins)


def test_a_mask_says_where_the_first_of_its_kind_was(records):
    text = "Ask jo@shop.org or al@shop.org, 81.2.69.142 or 81.2.69.143."
    rows = run(records([text])).removed.to_pylist()
    places = {row["reason"]: row["place"] for row in rows}
    assert places == {"personal_email": 4, "personal_ip": text.index("81.2.69.142")}


@pytest.mark.parametrize("lang", ["code", "code-python", "Code_Go", "CODE"])
def test_every_tag_of_code_keeps_its_numbers(records, lang):
    text = 'HOST = "81.2.69.142"  # jo@shop.org'
    (row,) = run(records([text], lang=lang)).table["text"].to_pylist()
    assert row == 'HOST = "81.2.69.142"  # [EMAIL]'


def test_prose_about_code_loses_its_numbers(records):
    text = "The server is 81.2.69.142."
    (row,) = run(records([text], lang="codex")).table["text"].to_pylist()
    assert row == "The server is [IP]."


def test_decomposed_words_and_ligatures_are_found(tmp_path):
    words = WordList(words_of(tmp_path, ["naïve", "office", "straße"]))
    assert words.find("Nai\u0308ve o\ufb03ce STRASSE") == {"naïve": 1, "office": 1, "strasse": 1}


@pytest.mark.parametrize("unit", ["____.", "a_a_", "a.", "-.", "bad.", "_", "a.bad.example/"])
def test_hosts_are_searched_in_linear_time(tmp_path, unit):
    path = tmp_path / "urls.txt"
    path.write_text("evil.example\nevil.co.uk/x\n", encoding="utf-8")
    hosts = UrlList([str(path)])

    def seconds(size):
        text = unit * (size // len(unit))
        begun = time.process_time()
        hosts.find(text)
        return time.process_time() - begun

    assert min(seconds(40_000) for _ in range(3)) < 0.4

"""Blocks of AsciiDoc, MDX, templates, mails and plain text: code and tables are found whole."""

from __future__ import annotations

import pytest

from bc2.data.prep.text.markup.block import BlockKind
from bc2.data.prep.text.markup.blocks import blocks
from bc2.data.prep.text.markup.unmarked_code import is_unmarked_code
from bc2.data.prep.text.sentences import prose_of, prose_sentences, split_sentences

SAID = "The server reads the file once, and it keeps the result.\n"

#: Blocks, with the kind of each; none has prose.
BLOCKS = {
    "listing below attributes": ("[source,python]\n", "----\nprint(1)\n\nprint(2)\n----\n", "code"),
    "listing below a title": (".Output\n", "....\nfirst\n\nsecond\n....\n", "code"),
    "AsciiDoc table": ("", "|===\n|Name |Use\n\n|a\n|the first\n|===\n", "table"),
    "AsciiDoc heading": ("", "=== How it works\n", "heading"),
    "imports of MDX": ("", "import Tabs from '@theme/Tabs';\nimport x from \"./x\";\n", "code"),
    "exports of MDX": ("", "export const meta = {\n  title: 'x',\n}\n", "code"),
    "remark of MDX": ("", "{/* Shared text.\nUse `<Only>` for the rest. */}\n", "html"),
    "tags of templates": ("", "{% include note.html %}\n", "html"),
    "code of Jekyll": ("", "{% highlight ruby %}\nputs 1\n\nx\n{% endhighlight %}\n", "code"),
    "code of Hugo": ("", "{{< highlight go >}}\nfmt.Println()\n{{< /highlight >}}\n", "code"),
    "admonition of Docusaurus": ("", ":::tip Read this\n", "heading"),
    "banner": ("", "************* VERSION 2 OR BETTER ***********\n", "heading"),
    "table of psql": ("", " name | left\n------+------\n a    |    5\n b    |    6\n", "table"),
    "columns": ("", "Device     Start    End  Type\n/dev/sda1   2048   4095  Linux\n", "table"),
    "columns with tabs": ("", "name\tsize\tuse\na\t12\tyes\nb\t3\tno\n", "table"),
    "head of a forwarded mail": ("", "From: A <a@e.org>\nSent: Monday\nSubject: Hi\n", "matter"),
    "signature of OpenPGP": (
        "",
        "-----BEGIN PGP SIGNATURE-----\nVersion: 1\n\niD8DBQ\n-----END PGP SIGNATURE-----\n",
        "code",
    ),
    "difference of files": ("", "--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-one\n+two\n", "code"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_found_whole(name):
    above, block, kind = BLOCKS[name]
    text = f"{SAID}\n{above}{block}\n{SAID}"
    found = [text[b.start : b.end] for b in blocks(text) if b.kind is BlockKind(kind)]
    assert found == [f"{block}\n"]
    assert prose_of(text).count(SAID) == 2
    assert [piece.strip() for piece in prose_sentences(text) if piece.strip() not in above] == [
        SAID.strip()
    ] * 2


@pytest.mark.parametrize(
    "text",
    [
        "It was dark.  The wind blew.  Rain fell.\nIt went on.  Nobody came.  They slept.\n",
        "$ 3.99 is the price of it.\n$ 12 is too much.\n",
        "import the file first, then look at it.\n",
        "From here on: it is easy.\nTo do so: press the key.\n",
    ],
)
def test_prose_that_looks_like_a_block_is_text(text):
    assert {block.kind for block in blocks(text)} == {BlockKind.TEXT}


def test_a_signed_message_is_prose_and_its_signature_is_not():
    text = (
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA1\n\n{SAID}\n"
        "-----BEGIN PGP SIGNATURE-----\n\niD8DBQ\n-----END PGP SIGNATURE-----\n"
    )
    assert prose_of(text).strip() == SAID.strip()


def test_a_line_of_tildes_that_nothing_closes_is_no_fence():
    text = f"Released in May\nChanged in June\n{'~' * 20}\n\n{SAID}"
    assert SAID in prose_of(text)
    assert BlockKind.CODE not in {block.kind for block in blocks(text)}
    fenced = f"{SAID}\n{'~' * 6}\ncode\n{'~' * 6}\n"
    assert [block.kind for block in blocks(fenced)] == [BlockKind.TEXT, BlockKind.CODE]


def test_prose_in_lines_of_html_is_prose():
    text = (
        '<div>\n<p align="center">The server reads the file once, and it keeps the '
        'result <a href="https://e.org">until the next request</a>.</p>\n'
        '<li><a href="/a">Home</a></li>\n</div>\n'
    )
    assert prose_of(text).strip() == (
        "The server reads the file once, and it keeps the result until the next request."
    )


def test_no_sentence_ends_in_an_element():
    text = "Call <code>open(name, ...) -> File</code> first. Then <b>wait. Or go</b> on.\n"
    assert split_sentences(text) == [
        "Call <code>open(name, ...) -> File</code> first. ",
        "Then <b>wait. Or go</b> on.\n",
    ]


def test_lists_of_code_are_no_prose():
    listed = "`str`, `dict`, [`list`], `datetime.date`, `uuid.UUID` and `None`.\n"
    typed = "`data` {string|Buffer|TypedArray} is what to write, and it may be empty.\n"
    assert prose_sentences(f"{listed}\n{typed}") == ["  is what to write, and it may be empty.\n"]


@pytest.mark.parametrize(
    "piece",
    [
        "PQsetErrorContextVisibility",
        "- XML_FEATURE_MAX_ENTITY_EXPANSIONS",
        "[--abbrev[=<n>]] [--format=<format>] [--] [<file>...]",
        "{ { SELECT | UPDATE } [, ...]",
        "1.2  The manual page system ..................... 3",
        "100644 blob 8d14531846b95bfa3564b58ccfb7913a034323b8 .gitignore",
    ],
)
def test_names_synopses_and_digests_are_code(piece):
    assert is_unmarked_code(piece)


@pytest.mark.parametrize(
    "piece",
    [
        "XK9@@##qW%%zz^^Rt~~pL$$mN**bV##",
        "Home > News > > | _ _ |",
        "哈哈哈哈哈哈哈",
        "a" * 50,
        SAID,
    ],
)
def test_noise_and_sentences_are_no_code(piece):
    assert not is_unmarked_code(piece)

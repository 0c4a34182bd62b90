"""English documentation and mails stay as they are; junk goes, whatever markup it wears."""

from __future__ import annotations

import pytest

from bc2.data.prep.heuristics_settings import HeuristicsSettings
from bc2.data.prep.settings import QualitySettings
from bc2.data.prep.stages.heuristics import HeuristicsStage
from bc2.data.prep.stages.quality import QualityStage


def judged(text: str, records) -> tuple[str | None, list[str]]:
    """What heuristics and quality leave of a text, and their reasons."""
    table, reasons = records([text], lang="en"), []
    for stage in (HeuristicsStage(HeuristicsSettings()), QualityStage(QualitySettings())):
        outcome = stage.apply(table, None)
        reasons += outcome.removed["reason"].to_pylist()
        table = outcome.table
    return (table["text"][0].as_py() if len(table) else None), reasons


# -- what stays ----------------------------------------------------------------------------

FUNCTIONS = {
    "open": ("Opens a file and returns a handle to it.", "The file must exist."),
    "read": ("Reads from the current place in a file.", "Fewer bytes come at its end."),
    "write": ("Writes bytes to a file.", "The file grows if there is no room in it."),
    "close": ("Closes a handle.", "No other function may use the handle after that."),
    "stat": ("Tells the size of a file and when it was written.", "Links are followed."),
    "unlink": ("Removes the name of a file.", "Its bytes go when the last handle is closed."),
}
REFERENCE = "# Files\n\nThe module works with files.\n\n" + "\n".join(
    f"## `fs.{name}(path[, options])`\n\n<!-- YAML\nadded: v1.0\n-->\n\n"
    "* `path` {string|Buffer|URL}\n* `options` {Object}\n"
    "  * `encoding` {string} **Default:** `'utf8'`\n"
    f"* Returns: {{Promise}} what {name} gives back, or an error if it fails.\n\n"
    f"{what} {more}\n\nExample:\n\n```js\nawait fs.{name}('a.txt');\n```\n"
    for name, (what, more) in FUNCTIONS.items()
)

POOL = "# Class: Stats\n\nAggregate stats for a pool.\n\n" + "\n\n".join(
    f"### `stats.{name}`\n\nNumber of {what}."
    for name, what in {
        "connected": "open socket connections in this pool",
        "free": "open socket connections that do not have an active request",
        "pending": "pending requests across all clients in this pool",
        "queued": "queued requests across all clients in this pool",
        "running": "currently active requests across all clients in this pool",
        "size": "requests of any of these kinds",
    }.items()
)

OPTIONS = """\
Demonstration of the model converter

- --input: where the model lies that is to be converted. It may be a folder
- --output: file to write
- --type: type of the numbers, such as f16 (default: f32)
- -n: number of threads
- -v: say more
- --dry-run: read the model and tell what would be written, without a file

The converter can be called as follows, for example to halve the size of a model:

```
convert --input a --output b --type f16
```
"""

COMPILERS = (
    "Specify whether to treat warnings as errors when a target is compiled. If the option is "
    "given, this property is not looked at. It is not implemented for all compilers; where it is "
    "not, it is ignored. The compilers that know it are:\n\n"
    + "".join(
        f"* {name}\n"
        for name in ["GNU", "Clang", "AppleClang", "Fujitsu", "Intel", "MSVC", "NVHPC", "PGI"]
    )
    + "\nThis property is set from a variable when a target is created.\n"
)

FLATTENED = """\
Raising of errors from the interpreter

The function is called with the state of the error, and it prints the message. The names are

  PQsetErrorContextVisibility
  PQresultVerboseErrorMessage
  XML_FEATURE_MAX_ENTITY_EXPANSIONS

and each of them is described below, with the values that it may have in a program.

 sl_name    | sl_avail | sl_color
------------+----------+----------
 sl1        |        5 | black
 sl2        |        6 | black

fsck [--tags] [--root] [--unreachable] [--cache] [--no-reflogs]
     [--[no-]full] [--strict] [--verbose] [<object>...]

The digest of the file is d6cd1e2bd19e03a81132a23b2025920577f84e37, and you may compare it with
yours to be sure that nobody has changed what you have got.
"""

MAIL = """\
Return-Path: <ann@lists.example.org>
Received: from mail.example.org ([192.0.2.7])
\tby mx.example.net with ESMTP id g7QAAbc12345; Mon, 26 Aug 2002 10:10:10 +0100
From: Ann <ann@example.org>
Subject: Re: status of the patch

On Mon, Aug 26, 2002 at 10:10:10AM +0100, Bob wrote:
> > Could you send me the log of the last run, so that I can compare
> > it with mine?
> It is attached, and I have marked the line where it goes wrong.

Thanks, it helped me to find the problem in the driver. The second test
still fails on my machine, but only when the cache is empty:

name        before   after
----------  ------  ------
parse         12.4     9.1
write          8.0     7.7

--- a/x.c
+++ b/x.c
@@ -1,3 +1,3 @@
-  if (n=0) return;
+  if (n==0) return;

---------- Forwarded message ----------
Date: Sun, 25 Aug 2002 09:00:00 -0700
From: Carl <carl@example.com>
Subject: numbers

If nobody objects by Friday, I will merge it and cut a release candidate.

-----BEGIN PGP SIGNATURE-----
Version: GnuPG v1.0.6 (GNU/Linux)

iD8DBQE9abcdEf1234567890abcdEFGHIJKLMNOPQRSTUVWXYZabcdefgh12345
abcDEFghiJKLmnoPQRstuVWXyz==
=AbCd
-----END PGP SIGNATURE-----
"""

EXAMPLES = "\n".join(
    f"**Example {n}: To list the coverage by {what}**\n\nThe following ``list-coverage`` example "
    f"lists the coverage of your environment by {what}. ::\n\n"
    f"    tool list-coverage \\\n        --group-by {what.upper()}\n\n"
    'Output::\n\n    {\n        "counts": {\n'
    + "".join(
        f'            "{what}-{i}": {{"covered": {i * n}, "total": {i * 9}}},\n' for i in range(9)
    )
    + "        }\n    }\n\nFor more information, see `Assessing coverage <https://example.org>`__ "
    "in the *User Guide*.\n"
    for n, what in enumerate(("account", "region", "type", "name"), 1)
)

CONVENTIONS = (
    "This document tells how to write the documentation, so that all of it looks alike. We expect "
    "it to change over time, since new ways are found and old ones are given up.\n\n"
    "Admonitions are written with the name of a directive and an indented text below it, which "
    "begins with a capital letter and ends with a full stop, as any other text of ours does:\n\n"
    ".. note::\n\n   Lorem ipsum dolor sit amet.\n\n"
    "Do not use phrases such as \"easy\" or \"just\", which say that the task is trivial. If it "
    "were, the reader would not be reading about it.\n"
)  # fmt: skip

GOOD = {
    "reference": REFERENCE,
    "repeated term": POOL,
    "options": OPTIONS,
    "examples with code": EXAMPLES,
    "short items": COMPILERS,
    "stripped page": FLATTENED,
    "mail": MAIL,
    "filler as an example": CONVENTIONS,
}


@pytest.mark.parametrize("name", GOOD)
def test_documentation_and_mails_stay_whole(name, records):
    assert judged(GOOD[name], records) == (GOOD[name], [])


# -- what goes -----------------------------------------------------------------------------

MENU = [
    *("Home", "About us", "Products", "Latest news", "Contact", "Log in", "Register", "My account"),
    *("Shopping cart", "Site map", "Careers", "Press", "Investors", "Support", "Downloads"),
    *("Forum", "Blog", "Privacy policy", "Imprint"),
] * 3
NOTICE = [
    "We use cookies to improve your experience of the site.",
    "By using this site you accept our cookies and have agreed to that.",
    "Read our privacy policy and the terms of service.",
    "Please enable JavaScript to view this page.",
    "Subscribe to our newsletter and be the first to know.",
    "Click here to log in to comment.",
    "All rights reserved.",
]
STUFFED = ["cheap watches online, buy cheap watches, best cheap watches of the web to order"] * 12
CITIES = ["Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Prague", "Lisbon", "Oslo"]
SEO = [
    f"Looking for a cheap hotel in {city}? The best hotels in {city} are here. Book a cheap hotel "
    f"in {city} today and save with our offers."
    for city in CITIES
]
OFFER = ["This is the best offer of the week, and you should not miss it!"] * 20
BROKEN = ["ä¸­å\x9b½äººæ°\x91 å\x85±å\x92\x8cå\x9b½ æ\x96\x87å\xad\x97 ç¼\x96ç\xa0\x81"] * 20
NAMES = [f"{a} {b}" for a in ["Anna", "Bert", "Carl", "Dora", "Emil"] for b in CITIES]
COMMITS = [f"fix thing{n} in module{n % 5} (#{n + 100}) (abc{n:04x})" for n in range(60)]
SHOP = [f"Item {n}\n$ {n}.99\nAdd to cart\nIn stock\nRating: 5/5" for n in range(30)]

JUNK = {
    "menu": MENU,
    "notice": NOTICE,
    "stuffed": STUFFED,
    "cities": SEO,
    "offer": OFFER,
    "broken": BROKEN,
    "names": NAMES,
    "commits": COMMITS,
    "shop": SHOP,
}
WEAR = {
    "lines": "{}\n".format,
    "paragraphs": "{}\n\n".format,
    "items": "- {}\n".format,
    "numbered": "1. {}\n".format,
    "links": "* [{}](https://example.org/a/b)\n".format,
    "quotations": "> {}\n>\n".format,
    "emphasis": "**{}**\n\n".format,
    "headings": "## {}\n\n".format,
    "table": "| {} | x |\n".format,
    "HTML": "<p>{}</p>\n".format,
    "HTML links": '<li><a href="/a/b.html">{}</a></li>\n'.format,
}


@pytest.mark.parametrize("wear", WEAR)
@pytest.mark.parametrize("name", JUNK)
def test_junk_goes_in_any_markup(name, wear, records):
    head = "| a | b |\n|---|---|\n" if wear == "table" else ""
    left, reasons = judged(head + "".join(map(WEAR[wear], JUNK[name])), records)
    assert left is None, reasons

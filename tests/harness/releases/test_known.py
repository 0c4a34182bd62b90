"""What differs from a known release is said: missing datasets, rows, their number."""

from __future__ import annotations

from bc2.harness.releases.known import KnownRelease, dataset_digest, dataset_key, release_digest
from bc2.harness.releases.source import Splits

ROWS: Splits = {"dev": [{"q": "a\r\nb"}], "test": [{"q": "c"}, {"q": ["d", "e\r"]}]}

KNOWN = KnownRelease(
    "the release",
    "",
    {f"x/{name}": {"dev": 1, "test": 2, "digest": dataset_digest(ROWS)} for name in "abcdef"},
)


def test_only_what_differs_is_said() -> None:
    same = {("x", name): ROWS for name in "abcdef"}
    assert KNOWN.differences(same, whole=True) == []
    some = {("x", "a"): ROWS}
    assert KNOWN.differences(some, whole=False) == []
    assert KNOWN.differences(some, whole=True) == [
        "missing of the release: x/b, x/c, x/d and 2 more"
    ]
    fewer: Splits = {**ROWS, "test": ROWS["test"][:1]}
    assert KNOWN.differences({("x", "a"): fewer, ("y", None): ROWS}, whole=False) == [
        "another number of rows than the release: x/a dev 1, test 1 (known: dev 1, test 2), "
        "y dev 1, test 2 (known: none)"
    ]
    swapped: Splits = {**ROWS, "test": ROWS["test"][::-1]}
    assert KNOWN.differences({("x", "b"): swapped}, whole=False) == [
        "other rows than the release: x/b"
    ]


def test_digests_are_of_rows_and_not_of_line_ends() -> None:
    unix: Splits = {"dev": [{"q": "a\nb"}], "test": [{"q": "c"}, {"q": ["d", "e\n"]}]}
    assert dataset_digest(unix) == dataset_digest(ROWS)
    assert release_digest({("x", "a"): ROWS}) == release_digest({("x", "a"): unix})
    assert release_digest({("x", "a"): ROWS}) != release_digest({("x", None): ROWS})
    assert release_digest({("x", "a"): ROWS}) != release_digest({("x", "b"): ROWS})
    assert (dataset_key("x", "a"), dataset_key("x", None)) == ("x/a", "x")

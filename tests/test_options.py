import pytest

from bc2.errors import UsageError
from bc2.options import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2 GiB", 2**31),
        ("2GiB", 2**31),
        ("500 MB", 500_000_000),
        ("1.5 KiB", 1536),
        ("1000000", 1_000_000),
        ("64 B", 64),
        (" 1 TB ", 10**12),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text, "--cache-memory") == size


@pytest.mark.parametrize(
    "text", ["", "two", "2 Gib", "2 gb", "-1 GB", "1e9", "1,000", "GiB", "0", "0.1"]
)
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="--cache-memory"):
        parse_bytes(text, "--cache-memory")

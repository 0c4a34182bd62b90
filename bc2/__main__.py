"""`python -P -m bc2`."""

from bc2.cli import main

main()

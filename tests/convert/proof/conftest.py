"""Models as bc2 holds them, and what a conversion wrote of them: each made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from made_export import Held, imported


@pytest.fixture(scope="package")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Held]]:
    """A model of `made_hf_models` by its name."""
    made: dict[str, Held] = {}
    with ExitStack() as stack:

        def get(name: str) -> Held:
            if name not in made:
                folder = tmp_path_factory.mktemp("held")
                source = stack.enter_context(imported(name, folder))
                made[name] = Held(source, folder / name)
            return made[name]

        yield get

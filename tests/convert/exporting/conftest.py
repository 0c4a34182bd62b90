"""What tests of exports share: a folder for code that transformers copies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import written_exports


@pytest.fixture(scope="session", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Code of written models is copied to where it is thrown away."""
    undo = written_exports.modules_in(tmp_path_factory.mktemp("modules"))
    yield
    undo()

"""Writing a figure to files: the same figure gives the same bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.files import replace_durably

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What matplotlib would write of itself and of the time.
_METADATA: dict[str, Any] = {"svg": {"Date": None}, "png": {"Software": None}}


def save_figure(drawn: Figure, path: Path) -> list[Path]:
    """Write ``path``.svg and ``path``.png. Returns: the two paths."""
    import matplotlib

    _lay_out(drawn)
    made = []
    with matplotlib.rc_context({"svg.hashsalt": "bc2"}):
        for kind, metadata in _METADATA.items():
            content = io.BytesIO()
            drawn.savefig(content, format=kind, dpi=130, metadata=metadata)
            made.append(path.with_name(f"{path.name}.{kind}"))
            replace_durably(made[-1], content.getvalue())
    return made


def _lay_out(drawn: Figure) -> None:
    """Work the layout out, once for both files: it takes longer than to draw them."""
    engine = drawn.get_layout_engine()
    if engine is not None:
        engine.execute(drawn)
        drawn.set_layout_engine("none")

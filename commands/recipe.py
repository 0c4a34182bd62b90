"""`bc2 recipe list|show|check`."""

from __future__ import annotations

import json as json_module
from typing import Any

from bc2.console import Output, note, table
from bc2.options import Json, Quiet, RecipeArg, Set, verb
from bc2.recipe import Recipe, load, shipped

app = verb()


@app.command("list")
def list_(json: Json = False, quiet: Quiet = False) -> None:
    """List the recipes that bc2 ships."""
    loaded = [(name, load(name)) for name in shipped()]
    rows = [
        {"name": name, "sections": list(r.section_names), "description": r.description}
        for name, r in loaded
    ]
    drawn = table(
        ("recipe", "sections", "description"),
        [(name, " ".join(r.section_names), r.description) for name, r in loaded],
    )
    Output.of(json=json, quiet=quiet).emit(
        {"recipes": rows}, table=drawn, quiet=[n for n, _ in loaded]
    )


@app.command()
def show(recipe: RecipeArg, set_: Set = None, json: Json = False) -> None:
    """Show a recipe with every default filled in, and the size of its model."""
    from bc2.pipeline.completion import completed

    loaded = completed(load(recipe, set_ or []))
    resolved = {**loaded.resolved(), **_sizes(loaded)}
    Output.of(json=json).emit(resolved, table=_tables(resolved))


@app.command()
def check(recipe: RecipeArg, set_: Set = None, json: Json = False, quiet: Quiet = False) -> None:
    """Check a recipe: keys, types, values, and sections against each other."""
    from bc2.pipeline.completion import completed
    from bc2.pipeline.reach import unread_sections
    from bc2.pipeline.table import check_recipe

    loaded = completed(load(recipe, set_ or []))
    check_recipe(loaded)
    for kind, (sections, found) in unread_sections(loaded).items():
        names = ", ".join(f"[{name}]" for name in sections)
        note(f"the {kind} of this recipe takes {found.spelled}, and does not read {names}")
    result = {"recipe": loaded.name, "path": str(loaded.path), "ok": True}
    Output.of(json=json, quiet=quiet).emit(
        result, table=f"{loaded.path}: ok ({', '.join(loaded.section_names)})"
    )


def _sizes(recipe: Recipe) -> dict[str, int]:
    from bc2.model.model_config import ModelConfig

    if not recipe.has(ModelConfig):
        return {}
    model = recipe.get(ModelConfig)
    return {
        "params": model.num_params(),
        "params_non_embedding": model.num_params_non_embedding(),
    }


def _tables(resolved: dict[str, Any]) -> str:
    """`[section]` blocks of `key = value`, as a recipe would spell them."""
    lines = [_row(key, value) for key, value in resolved.items() if _is_plain(value)]
    for name, section in resolved.items():
        if isinstance(section, dict):
            lines += _block(name, section)
    return "\n".join(lines)


def _block(name: str, section: dict[str, Any]) -> list[str]:
    plain = {k: v for k, v in section.items() if _is_plain(v)}
    lines = ["", f"[{name}]", *(_row(key, value) for key, value in plain.items())]
    for key, value in section.items():
        if isinstance(value, dict) and value:
            lines += _block(f"{name}.{key}", value)
        elif _is_tables(value):
            for item in value:
                lines += [
                    "",
                    f"[[{name}.{key}]]",
                    *(_row(k, v) for k, v in item.items() if _is_plain(v)),
                ]
    return lines


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _row(key: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{key} = {value:_}"
    return f"{key} = {json_module.dumps(value, ensure_ascii=False)}"


def _is_plain(value: Any) -> bool:
    # TOML has no null: what is not set is not shown.
    return value is not None and not isinstance(value, dict) and not _is_tables(value)

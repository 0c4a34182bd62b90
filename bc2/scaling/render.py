"""Laws and what they say, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group

from bc2.console import table
from bc2.scaling.decide import Allocation, Prediction
from bc2.scaling.law import ILL_CONDITIONED

#: How many influential points are shown.
_NAMED = 5


def law_table(result: Mapping[str, Any]) -> Group:
    """A law from what its ``law.json`` says."""
    symbols = list(result)[list(result).index("source") + 1 : list(result).index("level")]
    rows = [_interval_row(symbol, result[symbol]) for symbol in symbols]
    title = f"{result['formula']}    ({result['source']})"
    parts: list[Any] = [
        title,
        "",
        table(("", "value", f"{result['level']:.0%} interval"), rows),
        "",
    ]
    parts += _isoflop(result) if result["form"] == "isoflop" else _quality(result)
    return Group(*parts)


def _interval_row(name: str, one: Mapping[str, float | None]) -> tuple[str, str, str]:
    low, high = one["low"], one["high"]
    return name, number(one["value"]), f"{number(low)} to {number(high)}"


def number(value: float | None) -> str:
    """Four digits; a side without a bound is open."""
    if value is None:
        return "open"
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"


def _quality(result: Mapping[str, Any]) -> list[Any]:
    conventions, low = result["conventions"], result["range"]
    lines = [
        ("points", f"{result['points']}, {result['degrees_of_freedom']} degrees of freedom"),
        ("loss", f"{conventions['loss']} a token"),
        ("N", _params(conventions["params"]) + _span(low["params"])),
        ("D", f"training tokens, not steps{_span(low['tokens'])}"),
        ("C", _flops(conventions["flops"]) + _span(low["flops"])),
        ("objective", f"{result['objective']:.6g}, {result['objective_is']}"),
        ("starts", f"{result['starts_at_best']} of {result['starts']} reached it"),
        ("intervals", result["intervals"]),
        ("noise", _noise(result)),
        ("condition", _condition(result["condition"])),
    ]
    if result["at_bound"]:
        lines.append(("at a bound", f"{', '.join(result['at_bound'])}: the points do not show it"))
    if result["held_out"]:
        lines.append(("held out", _held_out(result["held_out"])))
    lines += _influential(result["influential"])
    compared = [
        (one["form"], f"{100 * one['error']:.2f}%", f"{one['intervals']:.2f}")
        for one in result["compared"]
    ]
    parts = [table(("", ""), lines)]
    if compared:
        head = ("form", "held-out error", "in intervals")
        parts += ["", "the largest runs, predicted from the others:", table(head, compared)]
    return parts


def _span(ends: Sequence[float]) -> str:
    return f", {ends[0]:.3g} to {ends[1]:.3g}"


def _params(how: str) -> str:
    return {
        "non-embedding": "parameters without embedding and head",
        "total": "all parameters, embedding and head too",
        "unstated": "parameters (the table does not say whether with embeddings)",
    }[how]


def _flops(how: str) -> str:
    return "FLOPs as 6ND" if how == "6ND" else "FLOPs as counted, with attention and head"


def _noise(result: Mapping[str, Any]) -> str:
    seeds = result["seed_noise"]
    between = f"; between seeds {100 * seeds:.2f}%" if seeds else ""
    return f"{100 * result['noise']:.2f}% of the loss{between}"


def _condition(value: float) -> str:
    poor = ": the points hardly tell the coefficients apart" if value > ILL_CONDITIONED else ""
    return f"{value:.3g}{poor}"


def _held_out(one: Mapping[str, Any]) -> str:
    names = one["names"]
    what = names[0] if len(names) == 1 else f"the {len(names)} largest"
    missed = "missed by" if len(names) == 1 else "missed by, root mean square,"
    within = "inside" if one["intervals"] <= 1 else "outside"
    return (
        f"fitted on the {one['fitted']} smaller, {what} {'is' if len(names) == 1 else 'are'} "
        f"{missed} {100 * one['error']:.2f}%, at most {one['intervals']:.2f} intervals ({within})"
    )


def _influential(named: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    lines = []
    for one in named[:_NAMED]:
        names = ", ".join(one["names"])
        who = f"{names} ({one['end']})" if one["end"] else names
        lines.append(
            (
                "decides",
                f"without {who}: {one['symbol']} {number(one['without'])} instead of "
                f"{number(one['value'])}, {one['errors']:.1f} standard errors",
            )
        )
    if len(named) > _NAMED:
        lines.append(("", f"and {len(named) - _NAMED} more points, see --json"))
    return lines


def _isoflop(result: Mapping[str, Any]) -> list[Any]:
    titles = {
        "flops": "FLOPs", "params": "best N", "tokens": "best D", "loss": "loss",
        "params_parabola": "N by a parabola (biased)",
        "params_parametric": "N by the parametric fit",
    }  # fmt: skip
    present = [name for name in titles if name in result["optima"][0]]
    rows = [[number(row[name]) for name in present] for row in result["optima"]]
    return [result["conventions_text"], "", table([titles[name] for name in present], rows)]


def prediction_table(one: Prediction, plan: Mapping[str, Any] | None) -> Group:
    """A prediction, and what the run takes on given devices."""
    rows = [
        ("loss", f"{one.loss.value:.4f}, a measurement between {one.loss.low:.4f} and "
         f"{number_or_open(one.loss.high)}"),
        ("N", f"{one.params:,.0f}"),
        ("D", f"{one.tokens:,.0f} tokens"),
        ("C", f"{one.flops:.4g} FLOPs in the law's counting; {one.counted_flops:.4g} with "
         "attention and head"),
        ("reach", f"{one.reach:,.3g} times the largest compute that was fitted"),
    ]  # fmt: skip
    if one.measured is not None and one.miss is not None:
        where = "inside" if one.inside else "outside"
        rows.append(
            ("measured", f"{one.measured:.4f}: {100 * one.miss:+.2f}%, {where} the interval")
        )
    if plan is not None:
        cost = f", cost {plan['cost']:,.2f}" if plan["cost"] is not None else ""
        rows.append(("plan", f"{plan['hours']:,.1f} hours on {plan['gpus']} x "
                     f"{plan['device']['name']} at an MFU of {plan['mfu']:.1%}{cost}"))  # fmt: skip
    return Group("", table(("", ""), rows, title=f"prediction for {one.target}"))


def number_or_open(value: float) -> str:
    return f"{value:.4f}" if value < 1e6 else "open"


def allocation_table(one: Allocation) -> Group:
    """The best size for a budget."""
    shape = one.shape
    rows = [
        _interval_row("best N", one.params.as_json()),
        _interval_row("best D", one.tokens.as_json()),
        _interval_row("loss", one.loss.as_json()),
    ]
    near = (
        f"nearest shape: hidden_size {shape.hidden_size}, intermediate_size "
        f"{shape.intermediate_size}, num_layers {shape.num_layers}, num_heads {shape.num_heads}: "
        f"{shape.num_params_non_embedding():,} parameters without embedding and head, "
        f"{one.shape_tokens:.4g} tokens, loss {one.shape_loss:.4f}"
    )
    return Group("", table(("", "value", "interval"), rows, title=f"{one.flops:.3g} FLOPs"), near)

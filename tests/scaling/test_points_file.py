"""Tables of runs: what is read, and one clear message for each wrong one."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from bc2.errors import Bc2Error, DataError, UsageError
from bc2.scaling.points_file import Table, read_optima, read_points

GOOD = """\
name,params,tokens,loss_nats
a,1e7,2e8,4.0
b,2e7,4e8,3.6
c,4e7,8e8,3.3
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "points.csv"
    path.write_text(text)
    return path


def test_columns_by_name_in_any_order(tmp_path: Path) -> None:
    text = "loss_bits , tokens,params\n5.0,100,10\n4.5,200,20\n"
    points = read_points(write(tmp_path, text), params="total")
    assert points.params.tolist() == [10, 20]
    assert points.flops.tolist() == [6000, 24000]
    assert points.loss.tolist() == [5.0, 4.5]
    assert (points.conventions.loss, points.conventions.params) == ("bits", "total")
    assert points.names == ("row 2", "row 3")


def test_tokens_are_flops_over_6n_where_only_those_are_given(tmp_path: Path) -> None:
    points = read_points(write(tmp_path, "params,flops,loss_nats\n1e7,1.2e16,4\n2e7,1e17,3\n"))
    assert points.tokens == pytest.approx([2e8, 1e17 / 1.2e8])
    assert points.conventions.flops == "6ND"


def test_flops_that_are_not_6nd_are_counted_ones(tmp_path: Path) -> None:
    text = "params,tokens,flops,loss_nats\n1e7,2e8,1.2e16,4\n2e7,4e8,7e16,3\n"
    assert read_points(write(tmp_path, text)).conventions.flops == "counted"


def test_conditions_leave_rows_out_and_say_how_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = GOOD.replace("tokens,", "tokens,kind,").replace("e8,", "e8,x,")
    path = write(tmp_path, text.replace("8e8,x", "8e8,y"))
    assert read_points(path, ["kind = x"]).names == ("a", "b")
    assert "1 of 3 rows are left out by --where" in capsys.readouterr().err
    assert read_points(path, ["params>=2e7", "kind != y"]).names == ("b",)
    assert read_points(path, ["tokens_per_param <= 20"]).names == ("a", "b", "c")


def test_a_byte_order_mark_and_blank_lines_are_no_data(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\nb,", "\n\nb,").encode())
    assert len(read_points(path)) == 3
    assert Table.read(path).lines == (2, 4, 5)


def test_a_table_from_a_pipe_is_there_whenever_it_is_asked_for() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, GOOD.encode())
    os.close(theirs)
    path = Path(f"/dev/fd/{ours}")
    assert Table.read(path).lines == Table.read(path).lines == (2, 3, 4)
    os.close(ours)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (GOOD.replace("params", "param"), DataError, "no column 'params'.*is it 'param'"),
        (GOOD.replace("tokens", "steps"), DataError, "no column 'tokens', nor 'flops'"),
        (GOOD.replace("loss_nats", "loss"), DataError, "unit.*--loss-unit"),
        (GOOD.replace("loss_nats", "val"), DataError, "no column 'loss_nats'"),
        (GOOD.replace("name", "params"), DataError, "'params' is there twice"),
        (GOOD.replace("3.6", "-3.6"), DataError, r"loss_nats is -3.6.*points.csv:3"),
        (GOOD.replace("3.6", "nan"), DataError, r"loss_nats is nan.*points.csv:3"),
        (GOOD.replace("3.6", "inf"), DataError, r"loss_nats is inf.*points.csv:3"),
        (GOOD.replace("2e7", "0"), DataError, r"params is 0.*points.csv:3"),
        (GOOD.replace("3.6", ""), DataError, r"loss_nats is missing.*points.csv:3"),
        (GOOD.replace("3.6", "3.6,9"), DataError, "5 cells.*4 columns.*points.csv:3"),
        (GOOD + "d,1e7,2e8,4.0\n", DataError, "line 5 is also that of line 2"),
        (GOOD.replace("loss_nats", "loss_nats,loss_bits").replace(".", ".1,5."), DataError,
         "two columns of losses"),
        (GOOD.replace(",", ";"), DataError, "separated by semicolons.*points.csv:1"),
        (GOOD.replace(",", "\t"), DataError, "separated by tabs.*points.csv:1"),
        (GOOD.replace("tokens", "toks"), DataError, "'tokens', nor 'flops',.*is it 'toks'"),
        (GOOD.replace("2e7,4e8", "1e200,1e200"), DataError, "flops is inf"),
        ("", DataError, "empty"),
        ("params,tokens,loss_nats\n", DataError, "no rows"),
    ],
)  # fmt: skip
def test_a_wrong_table_has_one_clear_message(
    text: str, error: type[Bc2Error], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        read_points(write(tmp_path, text))
    assert __import__("re").search(says, str(caught.value)), str(caught.value)


def test_numbers_too_large_to_multiply_are_refused_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="flops is inf"):
            read_points(write(tmp_path, GOOD.replace("2e7,4e8", "1e200,1e200")))


def test_a_run_without_a_name_is_called_after_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A column without a title, as a trailing comma leaves it, is not worth a warning."""
    text = GOOD.replace("\nb,", "\n,").replace("\n", ",\n")
    assert read_points(write(tmp_path, text)).names == ("a", "row 3", "c")
    assert capsys.readouterr().err == ""


def test_a_missing_file_and_binary_bytes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_points(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00params")
    with pytest.raises(DataError, match="not a CSV file"):
        read_points(tmp_path / "b.csv")
    with pytest.raises(DataError, match="not a CSV file"):
        read_points(tmp_path)


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("parms > 1", "did you mean 'params'"),
        ("params", "write it as"),
        ("params > big", "no number to compare"),
        ("params > 1e12", "leaves out all 3 rows"),
    ],
)
def test_a_wrong_condition(condition: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Bc2Error) as caught:
        read_points(write(tmp_path, GOOD), [condition])
    assert says in str(caught.value)


def test_a_unit_that_contradicts_the_column(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--loss-unit bits, but the column is called loss_nats"):
        read_points(write(tmp_path, GOOD), loss_unit="bits")


def test_what_is_not_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_points(write(tmp_path, GOOD.replace("loss_nats", "loss_nats,lr").replace("\n", ",1\n")
                      .replace("lr,1", "lr")))  # fmt: skip
    assert "columns that are not read: lr" in capsys.readouterr().err


def test_a_table_of_optima(tmp_path: Path) -> None:
    text = "flops,params_opt,tokens_opt\n1e18,1e8,1e9\n1e19,3e8,4e9\n"
    table = read_optima(write(tmp_path, text))
    assert table is not None
    assert np.array_equal(table.numbers("params_opt"), [1e8, 3e8])
    assert read_optima(write(tmp_path, GOOD)) is None
    with pytest.raises(DataError, match="2 rows have a budget of 1e"):
        read_optima(write(tmp_path, text + "1e19,4e8,5e9\n"))


def test_repeats_with_one_name_are_told_apart_by_their_lines(tmp_path: Path) -> None:
    """Tables of other people call runs that differ in their seed alone the same."""
    text = GOOD + "b,2e7,4e8,3.61\n,5e7,9e8,3.2\n"
    points = read_points(write(tmp_path, text))
    assert points.names == ("a", "b (row 3)", "c", "b (row 5)", "row 6")

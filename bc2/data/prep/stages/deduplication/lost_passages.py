"""Count the passages that were cut and whose first copy was removed by a later stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.data.prep.group_by import Int64, among, column
from bc2.data.prep.part_files import read_part_file
from bc2.data.prep.stages.base import Aftermath
from bc2.data.prep.stages.deduplication.cut_decision import DOCUMENT, PARAGRAPH

Mask = npt.NDArray[np.bool_]


def lost_with_holder(after: Aftermath, keys: Callable[[pa.Table], pa.Table]) -> dict[str, int]:
    """Count what is in no document any more, though a document that lost it stays.

    A first copy counts as removed if its document was dropped, or if a stage that cuts texts
    changed its document so that the passage is no longer among its passages. (A mask in it or a
    new neighbour has the same effect there, so in these few documents more may be counted than is
    lost.) A sentence of a paragraph that is lost does not count again.

    Memory: about 60 bytes for each passage that was cut or held.

    Args:
        keys: gives the hashes of the passages of documents: `PassagesStage.keys`.

    Returns:
        Numbers of passages, and of their UTF-8 bytes.
    """
    rows = _rows(after.verdicts)
    pos, hashes, held = (rows[name].to_numpy() for name in ("pos", "hash", "held"))
    alive = among(pos, np.sort(_positions(after.parts)))
    changed = np.unique(column(after.cut, "pos"))
    standing = held & alive & ~(among(pos, changed) & ~_found(pos, hashes, _kept(after, keys)))
    lost = ~held & alive & ~among(hashes, np.unique(hashes[standing]))
    inner = np.unique(hashes[lost & _in_lost_paragraph(rows, lost)])
    rows = rows.filter(pa.array(lost & ~among(hashes, inner)))
    _, firsts = np.unique(rows["hash"].to_numpy(), return_index=True)
    sizes = rows["bytes"].to_numpy()[firsts]
    return {"passages": len(firsts), "bytes": int(sizes.sum())}


def _rows(verdicts: Sequence[Path]) -> pa.Table:
    """The passages that were cut or held, in the order of documents."""
    names = ["pos", "kind", "index", "held", "hash", "inside", "bytes"]
    rows = pa.concat_tables([pq.read_table(path, columns=names) for path in verdicts])
    order = [(name, "ascending") for name in ("pos", "kind", "index")]
    return rows.filter(pc.not_equal(rows["kind"], DOCUMENT)).sort_by(order)


def _positions(parts: Sequence[Path]) -> Int64:
    """`pos` of the documents of parts."""
    return np.concatenate([read_part_file(part, ["pos"])["pos"].to_numpy() for part in parts])


def _kept(after: Aftermath, keys: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """`pos` and `hash` of the passages of those documents that a later stage may have cut."""
    changed = pa.array(np.unique(column(after.cut, "pos")), pa.int64())
    found = [pa.table({"pos": pa.array([], pa.int64()), "hash": pa.array([], pa.int64())})]
    for part in after.parts if len(changed) else ():
        table = read_part_file(part)
        mine = keys(table.filter(pc.is_in(table["pos"], value_set=changed)))
        found.append(mine.select(["pos", "hash"]))
    return pa.concat_tables(found)


def _found(pos: Int64, hashes: Int64, kept: pa.Table) -> Mask:
    """[n] whether each passage is among those of the documents in `kept`."""
    known = set(zip(kept["pos"].to_pylist(), kept["hash"].to_pylist(), strict=True))
    mask = among(pos, np.unique(kept["pos"].to_numpy()))
    for at in np.flatnonzero(mask).tolist():
        mask[at] = (int(pos[at]), int(hashes[at])) in known
    return mask


def _in_lost_paragraph(rows: pa.Table, lost: Mask) -> Mask:
    """[n] whether each passage is a sentence of a paragraph that its document lost for good."""
    paragraph = rows["kind"].to_numpy() == PARAGRAPH
    # `pos` has too many bits to be joined with another number; a document's index has not.
    documents = np.unique(rows["pos"].to_numpy(), return_inverse=True)[1]
    place = documents.astype(np.int64) << 31 | rows["inside"].to_numpy()
    inside: Mask = ~paragraph & among(place, np.unique(place[paragraph & lost]))
    return inside

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

    Memory: about 70 bytes for each passage that was cut or held.

    Args:
        keys: gives the hashes of the passages of documents: `PassagesStage.keys`.

    Returns:
        Numbers of passages, and of their UTF-8 bytes.
    """
    rows = _rows(after.verdicts)
    pos, hashes, held = (rows[name].to_numpy() for name in ("pos", "hash", "held"))
    alive = among(pos, np.sort(_positions(after.parts)))
    standing = held & alive
    standing &= ~_cut_later(pos, hashes, standing, after, keys)
    lost = rows.filter(pa.array(~held & alive & ~among(hashes, np.unique(hashes[standing]))))
    lost = _outermost(lost.sort_by([(name, "ascending") for name in ("pos", "kind", "index")]))
    _, firsts = np.unique(lost["hash"].to_numpy(), return_index=True)
    sizes = lost["bytes"].to_numpy()[firsts]
    return {"passages": len(firsts), "bytes": int(sizes.sum())}


def _rows(verdicts: Sequence[Path]) -> pa.Table:
    """The passages that were cut or held."""
    tables = (pq.read_table(path) for path in verdicts)
    return pa.concat_tables([each.filter(pc.not_equal(each["kind"], DOCUMENT)) for each in tables])


def _positions(parts: Sequence[Path]) -> Int64:
    """`pos` of the documents of parts."""
    return np.concatenate([read_part_file(part, ["pos"])["pos"].to_numpy() for part in parts])


def _cut_later(
    pos: Int64, hashes: Int64, which: Mask, after: Aftermath, keys: Callable[[pa.Table], pa.Table]
) -> Mask:
    """[n] which of some passages are in documents that a later stage cut, and no more among theirs.

    Args:
        pos, hashes: [n].
        which: [n] the passages in question.
    """
    changed = np.unique(column(after.cut, "pos"))
    mask: Mask = which & among(pos, changed)
    left: set[tuple[int, int]] = set()
    for part in after.parts if mask.any() else ():
        table = read_part_file(part)
        found = keys(table.filter(pc.is_in(table["pos"], value_set=pa.array(changed))))
        left.update(zip(found["pos"].to_pylist(), found["hash"].to_pylist(), strict=True))
    for at in np.flatnonzero(mask).tolist():
        mask[at] = (int(pos[at]), int(hashes[at])) not in left
    return mask


def _outermost(lost: pa.Table) -> pa.Table:
    """The rows of lost passages without the sentences of which a lost paragraph has a copy."""
    paragraph = lost["kind"].to_numpy() == PARAGRAPH
    # `pos` has too many bits to be joined with another number; a document's index has not.
    documents = np.unique(lost["pos"].to_numpy(), return_inverse=True)[1].astype(np.int64)
    place = documents << 31 | lost["inside"].to_numpy()
    hashes = lost["hash"].to_numpy()
    inside = ~paragraph & among(place, np.unique(place[paragraph]))
    return lost.filter(pa.array(~among(hashes, np.unique(hashes[inside]))))

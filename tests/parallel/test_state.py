"""State on disk: byte for byte what safetensors writes, whoever writes which part of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from bc2 import files as durable
from bc2.errors import IntegrityError, ResourceError, from_os_error
from bc2.files import sha256_file
from bc2.model.model_config import ModelConfig
from bc2.model.store import expected_shapes, load_model, load_weights, save_config
from bc2.model.transformer import Transformer
from bc2.parallel.build import parts
from bc2.parallel.mesh import Group, Mesh
from bc2.parallel.sharding import TensorShard, shard_of
from bc2.parallel.state import (
    Fragment,
    HeldTensors,
    Stored,
    TensorFile,
    index_of,
    plan_files,
    write_fragments,
)

NAMES = {
    torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.uint8: "U8", torch.int8: "I8",
}  # fmt: skip


def planned(tensors: dict[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}


def reference(tensors: dict[str, Tensor], folder: Path) -> bytes:
    save_file(tensors, folder / "reference", metadata={"format": "pt"})
    return (folder / "reference").read_bytes()


def numbers(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape)).to(dtype)


SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(max_examples=100, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(SHAPES, st.sampled_from(list(NAMES))),
        max_size=6,
    )
)
def test_a_file_is_what_safetensors_writes(
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]],
) -> None:
    made = {
        name: numbers(shape, seed, dtype)
        for seed, (name, (shape, dtype)) in enumerate(tensors.items())
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        file = TensorFile.plan(planned(made))
        file.create(folder / "file")
        fragments = [
            Fragment(name, TensorShard(tuple(whole.shape)), 0, whole.reshape(-1))
            for name, whole in made.items()
        ]
        write_fragments(folder, {"file": file}, fragments)
        assert (folder / "file").read_bytes() == reference(made, folder)
        opened = TensorFile.open(folder / "file")
        assert opened.places == file.places
        stored = Stored.open([folder / "file"])
        assert set(stored) == set(made)
        for name, whole in made.items():
            read = stored.whole(name)
            assert read.dtype == whole.dtype
            assert torch.equal(read, whole)


def test_a_file_before_anything_is_in_it_is_zeros(tmp_path: Path) -> None:
    whole = {
        "a.b": torch.zeros(3, 5),
        "step": torch.zeros(()),
        "r": torch.zeros(7, dtype=torch.uint8),
    }
    TensorFile.plan(planned(whole)).create(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == reference(whole, tmp_path)


# -- cuts and fragments -------------------------------------------------------------------

#: A module that is cut so, and the factors that its rows and columns have beside the ranks.
CUTS = {"input_layernorm": (1, 1), "gate_proj": (12, 1), "o_proj": (1, 12), "W_pack": (36, 1)}


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, tuple[int, ...]]:
    """Parameters whose cut dimension divides by 1, 2, 3, 4, 6 and 12."""
    found: dict[str, tuple[int, ...]] = {}
    for number, module in enumerate(draw(st.lists(st.sampled_from(list(CUTS)), max_size=4))):
        rows, columns = (n * draw(st.integers(1, 3)) for n in CUTS[module])
        found[f"layers.{number}.{module}.weight"] = (rows, columns)
    found["norm.norm.weight"] = (draw(st.integers(0, 9)),)
    found["step"] = ()
    return found


RANKS = st.sampled_from([1, 2, 3, 4, 6, 12])


def part_for(name: str, shape: tuple[int, ...], rank: int, ranks: int) -> TensorShard:
    return shard_of(name, shape, rank, ranks) if "." in name else TensorShard(shape)


def runs_of(part: TensorShard, rng: random.Random, most: int = 5) -> Iterator[tuple[int, int]]:
    """Any splitting of a part's flattened range: first and count of each run."""
    size = int(np.prod(part.shard_shape))
    marks = sorted(rng.randint(0, size) for _ in range(rng.randint(0, most)))
    for first, end in zip([0, *marks], [*marks, size], strict=True):
        yield first, end - first


@settings(max_examples=150, deadline=None)
@given(shapes=shapes(), ranks=RANKS, others=RANKS, rng=st.randoms(use_true_random=False))
def test_any_fragments_make_the_whole_and_any_others_are_read_from_it(
    shapes: dict[str, tuple[int, ...]], ranks: int, others: int, rng: random.Random
) -> None:
    made = {
        name: numbers(shape, seed, rng.choice(list(NAMES)))
        for seed, (name, shape) in enumerate(shapes.items())
    }
    fragments = []
    for name, whole in made.items():
        for rank in range(ranks):
            part = part_for(name, tuple(whole.shape), rank, ranks)
            flat = part.of(whole).reshape(-1)
            fragments += [
                Fragment(name, part, first, flat[first : first + count])
                for first, count in runs_of(part, rng)
            ]
    rng.shuffle(fragments)
    with TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        files = plan_files("state", planned(made), limit=rng.choice([1, 200, 1 << 20]))
        for name, file in files.items():
            file.create(folder / name)
        middle = rng.randint(0, len(fragments))
        for writer in (fragments[:middle], fragments[middle:]):
            write_fragments(folder, files, writer)
        for name, file in files.items():
            mine = {key: made[key] for key in file.places}
            assert (folder / name).read_bytes() == reference(mine, folder)
        stored = Stored.open([folder / name for name in files])
        for name, whole in made.items():
            for rank in range(others):
                part = part_for(name, tuple(whole.shape), rank, others)
                flat = part.of(whole).reshape(-1)
                for first, count in runs_of(part, rng):
                    read = stored.read(name, part, first, count)
                    assert torch.equal(read, flat[first : first + count])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=5),
    ranks=st.sampled_from([1, 2, 4]),
    writers=st.integers(1, 3),
    rng=st.randoms(use_true_random=False),
)
def test_blocks_past_the_page_cache_change_nothing(
    sizes: list[tuple[int, int]], ranks: int, writers: int, rng: random.Random
) -> None:
    """Tensors of many blocks, cut in rows and columns, from writers that are all at it."""
    shapes = {
        f"{number}.{rng.choice(list(CUTS))}.weight": (12 * rows, 12 * columns)
        for number, (rows, columns) in enumerate(sizes)
    }
    made = {name: numbers(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    fragments: list[list[Fragment]] = [[] for _ in range(writers)]
    for name, whole in made.items():
        for rank in range(ranks):
            part = part_for(name, tuple(whole.shape), rank, ranks)
            if part.dim is None and rank:
                continue
            flat = part.of(whole).reshape(-1)
            for first, count in runs_of(part, rng, most=2):
                run = Fragment(name, part, first, flat[first : first + count])
                rng.choice(fragments).append(run)
    with TemporaryDirectory() as folder_name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "ROOM", rng.choice([2, 16]) * durable.BLOCK)
        patch.setattr(durable, "LEAST_DIRECT", durable.BLOCK)
        folder = Path(folder_name)
        file = TensorFile.plan(planned(made))
        file.create(folder / "file")
        with ThreadPoolExecutor(writers) as pool:
            digests = list(
                pool.map(lambda mine: write_fragments(folder, {"file": file}, mine), fragments)
            )
        expected = reference(made, folder)
        assert (folder / "file").read_bytes() == expected
        true = {"file": hashlib.sha256(expected).hexdigest()}
        assert all(digest in ({}, true) for digest in digests)
        alone = [bool(mine) for mine in fragments].count(True) == 1
        assert not alone or true in digests or ranks > 1


def test_a_rank_that_writes_a_whole_file_knows_its_digest(tmp_path: Path) -> None:
    made = {"a": numbers((300, 500)), "b": numbers((7,), 1, torch.uint8), "c": torch.tensor(2.0)}
    planned_files = plan_files("x", planned(made), limit=600_000)
    first, second = planned_files
    mine = [Fragment(n, TensorShard(tuple(t.shape)), 0, t.reshape(-1)) for n, t in made.items()]
    for name, file in planned_files.items():
        file.create(tmp_path / name)
    digests = write_fragments(tmp_path, planned_files, mine)
    assert digests == {name: sha256_file(tmp_path / name) for name in (first, second)}
    assert write_fragments(tmp_path, planned_files, mine[:2]) == {first: digests[first]}
    half = Fragment("a", TensorShard((300, 500)), 0, made["a"].reshape(-1)[:1000])
    assert write_fragments(tmp_path, planned_files, [half]) == {}


# -- several files ------------------------------------------------------------------------


def tiny(norm_head: bool = True) -> ModelConfig:
    return ModelConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=4,
        context_length=16, norm_head=norm_head,
    )  # fmt: skip


def save_in_files(folder: Path, config: ModelConfig, model: Transformer, limit: int) -> list[str]:
    """As two tensor-parallel ranks do, an index beside them."""
    state = {name: p.detach() for name, p in model.named_parameters()}
    files = plan_files("model", planned(state), limit)
    for name, file in files.items():
        file.create(folder / name)
    for rank in range(2):
        mesh = Mesh(tensor=Group((0, 1), rank))
        mine = [
            Fragment(name, part, 0, part.of(state[name]).reshape(-1))
            for name, part in parts(config, mesh).items()
            if rank == 0 or part.dim is not None
        ]
        write_fragments(folder, files, mine)
    (folder / "model.safetensors.index.json").write_bytes(index_of(files))
    save_config(folder, config)
    return list(files)


def test_several_files_are_a_model_as_hugging_face_stores_it(tmp_path: Path) -> None:
    config = tiny()
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(3))
    expected = {name: p.detach() for name, p in model.named_parameters()}
    names = save_in_files(tmp_path, config, model, limit=6000)
    total = len(names)
    assert total > 3
    assert names == [f"model-{n:05d}-of-{total:05d}.safetensors" for n in range(1, total + 1)]
    for name in names:
        held = load_file(tmp_path / name).values()
        assert len(held) == 1 or sum(t.nbytes for t in held) <= 6000
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
    assert set(index["weight_map"]) == set(expected)
    fresh = Transformer(config)
    huggingface_hub.load_torch_model(fresh, tmp_path)
    shapes = expected_shapes(config)
    loads = [load_weights(tmp_path, shapes), load_model(tmp_path).state_dict(), fresh.state_dict()]
    for loaded in loads:
        assert loaded.keys() == expected.keys()
        for name, whole in expected.items():
            assert torch.equal(loaded[name], whole), name


def test_a_missing_file_of_several_is_seen(tmp_path: Path) -> None:
    config = tiny()
    names = save_in_files(tmp_path, config, Transformer(config), limit=6000)
    (tmp_path / names[1]).unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        load_weights(tmp_path, expected_shapes(config))
    stored = Stored.open([tmp_path / name for name in names if name != names[1]])
    lost = next(n for n, _ in Transformer(config).named_parameters() if n not in stored)
    with pytest.raises(IntegrityError, match=rf"{lost} is missing"):
        stored.read(lost, TensorShard((1,)), 0, 1)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("two", 2.0)):
        save_file({"w": torch.full((2,), value)}, tmp_path / name)
    with pytest.raises(IntegrityError, match="w is in another file too"):
        Stored.open([tmp_path / "one", tmp_path / "two"])


def test_another_shape_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, 3)}, tmp_path / "file")
    stored = Stored.open([tmp_path / "file"])
    with pytest.raises(IntegrityError, match=r"w is \[2, 3\], not \[3, 2\]"):
        stored.read("w", TensorShard((3, 2)), 0, 6)


# -- broken files -------------------------------------------------------------------------


def written(path: Path) -> bytes:
    save_file({"a": torch.ones(4, 3), "b": torch.ones(5, dtype=torch.uint8)}, path)
    return path.read_bytes()


@pytest.mark.parametrize("change", [-1, -5, 1, 8])
def test_a_file_of_another_length_is_not_complete(tmp_path: Path, change: int) -> None:
    path = tmp_path / "file"
    data = written(path)
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(IntegrityError, match="not a complete safetensors file"):
        Stored.open([path])


def test_every_beginning_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = written(path)
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(IntegrityError, match="safetensors file"):
            Stored.open([path])


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


HEADERS: dict[str, Any] = {
    "a list": [],
    "a number": 3,
    "a text": "x",
    "an entry that is a number": {"w": 1},
    "an entry that is a list": {"w": [1]},
    "no shape": {"w": {"dtype": "F32", "data_offsets": [0, 8]}},
    "no places": {"w": {"dtype": "F32", "shape": [2]}},
    "another type": {"w": entry(dtype="F64", shape=[1])},
    "a type that is a list": {"w": entry(dtype=["F32"])},
    "a negative size": {"w": entry(shape=[-2])},
    "two negative sizes": {"w": entry(shape=[-1, -2])},
    "a broken size": {"w": entry(shape=[2.0])},
    "a size that is a text": {"w": entry(shape=["2"])},
    "a size that is true": {"w": entry(shape=[2, True])},
    "a place that is a text": {"w": entry(data_offsets=["0", "8"])},
    "a broken place": {"w": entry(data_offsets=[0.0, 8.0])},
    "one place": {"w": entry(data_offsets=[0])},
    "a negative place": {"w": entry(data_offsets=[-8, 0])},
    "too small a place": {"w": entry(shape=[4])},
    "a hole": {"w": entry(shape=[1], data_offsets=[4, 8])},
    "overlapping tensors": {"w": entry(), "v": entry()},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_a_header_that_is_none_is_an_integrity_error(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "file"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(IntegrityError, match="not a safetensors file") as caught:
        TensorFile.open(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        bytes(8),
        b"\xff" * 64,
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 4) + b"\xff\xfe\x00\x01",
        struct.pack("<Q", 2 * 10**5) + b"[" * 2 * 10**5,
        struct.pack("<Q", 3) + b"{}",
    ],
)
def test_bytes_that_are_no_header_are_an_integrity_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="not a safetensors file"):
        TensorFile.open(path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_of_a_header_never_leads_outside_the_file(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        raw = bytearray(written(path))
        length = 8 + struct.unpack("<Q", raw[:8])[0]
        raw[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(raw)
        try:
            stored = Stored.open([path])
        except IntegrityError:
            return
        for name in stored:
            stored.whole(name)


# -- full disks ---------------------------------------------------------------------------


def test_a_full_disk_is_an_error_before_anything_is_mapped(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        file = TensorFile.plan({"w": ("F32", (1 << 16,))})
        with pytest.raises(OSError, match="No space left") as caught:
            file.create(folder / "file")
        assert caught.value.errno == errno.ENOSPC
        assert isinstance(from_os_error(caught.value, "saving a checkpoint"), ResourceError)
        # What fits can be written to its last byte.
        os.unlink(folder / "file")
        fits = TensorFile.plan({"w": ("F32", (1 << 14,))})
        fits.create(folder / "fits")
        (folder / "rest").write_bytes(bytes(100 * 1024 - (17 << 12)))
        whole = numbers((1 << 14,))
        write_fragments(folder, {"fits": fits}, [Fragment("w", TensorShard((1 << 14,)), 0, whole)])
        assert torch.equal(Stored.open([folder / "fits"]).whole("w"), whole)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# -- what a rank holds --------------------------------------------------------------------


def test_held_gives_back_what_it_has_and_nothing_else() -> None:
    held = HeldTensors()
    part = shard_of("a.o_proj.weight", (4, 6), 1, 2)
    held.add("a.o_proj.weight", part, 3, torch.arange(5.0))
    held.add("b.o_proj.weight", part, 0, None)
    assert "b.o_proj.weight" in held
    assert torch.equal(held.read("a.o_proj.weight", part, 4, 3), torch.tensor([1.0, 2.0, 3.0]))
    wrong = [
        ("a.o_proj.weight", part, 2, 2),
        ("a.o_proj.weight", part, 4, 5),
        ("a.o_proj.weight", shard_of("a.o_proj.weight", (4, 6), 0, 2), 4, 1),
        ("b.o_proj.weight", part, 0, 1),
        ("c.o_proj.weight", part, 0, 1),
    ]
    for request in wrong:
        with pytest.raises(KeyError, match="not held here"):
            held.read(*request)
    held.add("c.o_proj.weight", part, 0, torch.arange(12.0))
    assert torch.equal(held.read("c.o_proj.weight", part, 11, 1), torch.tensor([11.0]))


def test_held_plans_the_same_files_on_every_rank() -> None:
    first, second = HeldTensors(), HeldTensors()
    part = TensorShard((4,))
    first.add("w", part, 0, torch.ones(4))
    second.add("w", part, 0, None)
    for held in (first, second):
        held.add("random", TensorShard((3,)), 0, torch.ones(3, dtype=torch.uint8))
    assert (
        first.files("x")
        == second.files("x")
        == {"x.safetensors": TensorFile.plan({"w": ("F32", (4,)), "random": ("U8", (3,))})}
    )

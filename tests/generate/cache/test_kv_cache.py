import pytest
import torch

from bc2.generate.cache.kv_cache import KVCache
from bc2.generate.cache.memory import Memory, block_bytes
from bc2.model.model_config import ModelConfig

CPU = torch.device("cpu")


def make(poison=False, dtype=torch.float32, heads=2):
    return KVCache(5, 3, layers=2, heads=heads, head_dim=4, dtype=dtype, device=CPU, poison=poison)


@pytest.mark.parametrize("heads", [1, 2])
def test_tokens_are_written_where_they_belong(heads):
    cache = make(heads=heads)
    cache.data.zero_()
    blocks, places = torch.tensor([4, 0, 4, 2]), torch.tensor([2, 0, 0, 1])
    keys, values = torch.randn(2, 4, heads, 4)
    cache.write(1, cache.rows_of(blocks, places), keys, values)
    expected = torch.zeros_like(cache.data)
    for token in range(4):
        at = blocks[token], slice(None), places[token]
        expected[1, 0][at] = keys[token]
        expected[1, 1][at] = values[token]
    assert torch.equal(cache.data, expected)
    assert torch.equal(cache.layer(1)[0], expected[1, 0])
    assert torch.equal(cache.layer(1)[1], expected[1, 1])


def test_blocks_are_copied_in_all_layers():
    cache = make()
    cache.data.normal_()
    before = cache.data.clone()
    cache.copy([0, 3], [2, 1])
    cache.copy([], [])
    assert torch.equal(cache.data, before[:, :, [0, 3, 0, 3, 4]])


def test_poison_fills_what_nobody_uses():
    cache = make(poison=True)
    assert cache.data.isnan().all()
    cache.clear([1, 2])
    assert (cache.data[:, :, [1, 2]] == 0).all()
    cache.free([2])
    assert cache.data[:, :, [0, 2, 3, 4]].isnan().all()
    assert (cache.data[:, :, 1] == 0).all()
    plain = make()
    plain.data.fill_(1.0)
    plain.free([2])
    assert (plain.data == 1).all()


def memory(blocks=4):
    config = ModelConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=2, num_heads=2
    )
    return Memory.of(config, 2, blocks, 3, torch.float32, CPU, poison=True)


def test_a_known_block_keeps_its_numbers_until_it_is_forgotten():
    held = memory()
    known, other = blocks = held.take(2)
    held.cache.data[:, :, blocks] = 1.0
    assert held.pool.know(-1, [1, 2, 3], known)
    held.give_back(blocks)
    assert (held.cache.data[:, :, known] == 1).all()
    assert held.cache.data[:, :, other].isnan().all()
    held.forget_all()
    assert held.cache.data[:, :, known].isnan().all()
    assert (held.cache.data[:, :, held.take(4)] == 0).all()


def test_bytes_of_a_block_are_those_of_its_tensor():
    held = memory(blocks=1)
    config = ModelConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=2, num_heads=2
    )
    assert block_bytes(config, 2, 3, torch.float32) == held.cache.data.nbytes
    assert block_bytes(config, 1, 3, torch.bfloat16) == held.cache.data.nbytes // 4

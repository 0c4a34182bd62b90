"""Which kernels a GPU would be asked for, with fakes of the GPU and of the kernels."""

import sys
import types

import pytest
import torch
import torch.nn.attention
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

from bc2.model import cuda_kernels
from bc2.model.attention import alibi_slopes, attend
from bc2.model.cuda_kernels import fits_flash, use_newest_flash

CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
REST = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@pytest.fixture
def hopper(monkeypatch):
    """A GPU of capability 9.0 and cuDNN 9.17, and nothing but torch installed."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91700)
    monkeypatch.setattr(cuda_kernels, "flash_function", lambda: None)
    monkeypatch.setattr(cuda_kernels, "use_newest_flash", lambda *_: None)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Calls:
    """Records what the kernels are called with, and returns the values."""

    def __init__(self, monkeypatch):
        self.made = []
        monkeypatch.setattr(F, "scaled_dot_product_attention", self.dense)
        monkeypatch.setattr(cuda_kernels, "varlen_function", lambda: self.varlen)

    def dense(self, q, k, v, *, is_causal, scale):
        enabled = torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True)
        self.made.append(("dense", tuple(q.shape), is_causal, scale, enabled))
        return v

    def varlen(self, q, k, v, *seqlens, window_size, scale=None):
        assert seqlens[0].device.type == "cuda"
        self.made.append(("varlen", tuple(q.shape), window_size, scale, seqlens[2:]))
        return v


class Slicing(TorchFunctionMode):
    """Indexing by slices: torch's own asks for the device, which a build for CPUs cannot."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        x, keys = args
        keys = keys if isinstance(keys, tuple) else (keys,)
        dim = 0
        for at, key in enumerate(keys):
            if key is Ellipsis:
                dim = x.dim() - len(keys[at + 1 :])
                continue
            if key is None:
                x = x.unsqueeze(dim)
            else:
                assert key.step is None
                x = torch.ops.aten.slice(x, dim, key.start, key.stop)
            dim += 1
        return x


def on_a_gpu(lengths, *, size=128, dtype=torch.bfloat16, alibi=False):
    """Attention of tensors without values on a GPU that is not there."""
    # A fake tensor has no numbers, so reading lengths of documents would raise.
    with FakeTensorMode(), Slicing():
        total = sum(lengths)
        q, k, v = (torch.empty(total, 2, size, dtype=dtype, device="cuda") for _ in range(3))
        cu_seqlens = torch.empty(len(lengths) + 1, dtype=torch.int32, device="cuda")
        slopes = torch.empty(2, device="cuda") if alibi else None
        out = attend(q, k, v, cu_seqlens, max(lengths), slopes)
    assert out.shape == q.shape
    assert (out.device.type, out.dtype) == ("cuda", dtype)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("alibi", [False, True], ids=["plain", "alibi"])
def test_whole_sequences_are_dense_and_cudnn_is_first(monkeypatch, alibi):
    calls = Calls(monkeypatch)
    on_a_gpu([256, 256, 256], alibi=alibi)
    scale = 128**-0.5 if alibi else None
    shape = (3, 2, 256, 136 if alibi else 128)
    assert calls.made == [("dense", shape, True, scale, [CUDNN, FLASH, *REST])]


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("alibi", [False, True], ids=["plain", "alibi"])
@pytest.mark.parametrize("lengths", [[256, 100], [100, 100]], ids=str)
def test_other_documents_are_varlen_without_a_wait(monkeypatch, lengths, alibi):
    calls = Calls(monkeypatch)
    on_a_gpu(lengths, alibi=alibi)
    scale = 128**-0.5 if alibi else None
    shape = (sum(lengths), 2, 136 if alibi else 128)
    assert calls.made == [("varlen", shape, (-1, 0), scale, (max(lengths),) * 2)]


@pytest.mark.usefixtures("hopper", "deterministic")
def test_deterministic_leaves_cudnn_out(monkeypatch):
    calls = Calls(monkeypatch)
    on_a_gpu([256, 256])
    assert calls.made[0][-1] == [FLASH, *REST]


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("capability", "version", "length", "order"),
    [
        ((9, 0), 91002, 256, [CUDNN, FLASH, *REST]),
        ((9, 0), 91002, 192, [FLASH, *REST]),  # no multiple of 128, and cuDNN is too old
        ((9, 0), 91700, 192, [CUDNN, FLASH, *REST]),
        ((9, 0), None, 256, [FLASH, *REST]),
        ((8, 0), 91700, 256, [FLASH, *REST]),
        ((8, 9), 91700, 256, [FLASH, *REST]),
        ((10, 0), 91700, 256, [CUDNN, FLASH, *REST]),
    ],
)
def test_cudnn_is_asked_for_where_it_is_fast_and_right(
    monkeypatch, capability, version, length, order
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    calls = Calls(monkeypatch)
    before = torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True)
    on_a_gpu([length, length])
    assert calls.made[0][-1] == order
    assert torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True) == before


@pytest.mark.usefixtures("hopper")
def test_fp32_on_a_gpu_is_torchs_choice(monkeypatch):
    calls = Calls(monkeypatch)
    before = torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True)
    on_a_gpu([256, 256], dtype=torch.float32, alibi=True)
    scale = 2.0**-4  # the power of two that is nearest to 1 / √128 from below
    assert calls.made == [("dense", (2, 2, 256, 136), True, scale, before)]


@pytest.mark.parametrize("wanted", [False, True])
def test_flash_attn_is_told_to_be_deterministic(monkeypatch, wanted):
    calls = []

    def flash_attn_varlen_func(q, k, v, *seqlens, **options):
        calls.append(options)
        return q

    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    cuda_kernels.flash_function.cache_clear()
    torch.use_deterministic_algorithms(wanted)
    try:
        q = torch.zeros(4, 2, 8)
        bounds = torch.tensor([0, 4], dtype=torch.int32)
        attend(q, q, q, bounds, 4, alibi_slopes(2), backend="flash")
    finally:
        torch.use_deterministic_algorithms(False)
        cuda_kernels.flash_function.cache_clear()
    (options,) = calls
    assert torch.equal(options.pop("alibi_slopes"), alibi_slopes(2))
    assert options == {"causal": True, "deterministic": wanted}


@pytest.mark.parametrize(
    "package",
    [None, types.ModuleType("flash_attn")],
    ids=["not installed", "without the function"],
)
def test_a_flash_attn_without_the_function_is_none(monkeypatch, package):
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    cuda_kernels.flash_function.cache_clear()
    assert cuda_kernels.flash_function() is None
    cuda_kernels.flash_function.cache_clear()


class Registry:
    """torch's switch between versions of FlashAttention."""

    def __init__(self, monkeypatch, installed, active=None):
        self.installed, self.active, self.asked = installed, active, []
        use_newest_flash.cache_clear()
        monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", self.activate)
        monkeypatch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: self.active)

    def activate(self, version):
        self.asked.append(version)
        if version not in self.installed:
            raise ModuleNotFoundError(version)
        self.active = version


@pytest.mark.parametrize(
    ("capability", "channels", "installed", "active"),
    [
        ((9, 0), 128, {"FA3", "FA4"}, "FA3"),
        ((9, 0), 128, {"FA4"}, "FA4"),
        ((9, 0), 136, {"FA3", "FA4"}, "FA3"),
        ((9, 0), 136, {"FA4"}, None),
        ((9, 0), 128, set(), None),
        ((10, 0), 128, {"FA3", "FA4"}, "FA4"),
        ((8, 0), 128, {"FA3", "FA4"}, None),
    ],
)
def test_the_newest_flash_attention_that_fits(monkeypatch, capability, channels, installed, active):
    registry = Registry(monkeypatch, installed)
    use_newest_flash(capability, channels)
    use_newest_flash(capability, channels)
    assert registry.active == active
    assert len(registry.asked) <= 2, "asked once"


def test_what_someone_activated_stays(monkeypatch):
    registry = Registry(monkeypatch, {"FA3", "FA4"}, active="FA4")
    use_newest_flash((9, 0), 64)
    assert (registry.active, registry.asked) == ("FA4", [])
    assert fits_flash(128)
    assert not fits_flash(136)


def test_a_torch_that_cannot_switch_keeps_its_own(monkeypatch):
    use_newest_flash.cache_clear()
    monkeypatch.delattr(torch.nn.attention, "activate_flash_attention_impl")
    monkeypatch.delattr(torch.nn.attention, "current_flash_attention_impl")
    use_newest_flash((9, 0), 64)
    assert fits_flash(256)
    assert not fits_flash(264)


def test_the_installed_torchs_switch_refuses_what_is_not_installed():
    """The real one, without FlashAttention 3 and 4: nothing is raised, nothing is changed."""
    use_newest_flash.cache_clear()
    use_newest_flash((9, 0), 128)
    use_newest_flash((10, 0), 128)
    assert torch.nn.attention.current_flash_attention_impl() is None

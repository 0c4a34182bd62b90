"""What is said of machines of each kind."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bc2 import abilities as module
from bc2.abilities import Ability, Facts, abilities, look

#: A machine with eight GPUs that has everything.
WHOLE = Facts(
    gpus=8, cuda="12.8", driver=True, nccl="2.27.5", deepspeed=True, compiler="/usr/bin/g++",
    headers=True, triton=True, flash="there", sandbox="namespaces",
)  # fmt: skip
CPU = replace(WHOLE, gpus=0, cuda=None, driver=False, nccl=None, triton=False, flash="none")
MAC = replace(CPU, system="darwin", mps=True, deepspeed=False, sandbox=None)


def told(facts: Facts, name: str) -> Ability:
    (found,) = (each for each in abilities(facts) if each.name == name)
    return found


def able(facts: Facts) -> list[bool]:
    return [each.able for each in abilities(facts)]


def test_a_machine_that_has_everything() -> None:
    assert all(able(WHOLE))
    assert told(WHOLE, "train on a GPU").about == "8 GPUs, CUDA 12.8"
    ranks = told(WHOLE, "train on several ranks").about
    assert ranks == "up to 8 with --nproc, over NCCL 2.27.5"


def test_one_gpu_has_room_for_one_rank() -> None:
    one = replace(WHOLE, gpus=1)
    assert told(one, "train on a GPU").about.startswith("one GPU")
    ranks = told(one, "train on several ranks")
    assert (ranks.able, "there is one" in ranks.about) == (False, True)
    assert able(one).count(False) == 1


def test_a_torch_without_nccl() -> None:
    ranks = told(replace(WHOLE, nccl=None), "train on several ranks")
    assert (ranks.able, "has no NCCL" in ranks.about) == (False, True)


def test_without_a_gpu_ranks_share_the_cpu() -> None:
    assert not told(CPU, "train on a GPU").able
    ranks = told(CPU, "train on several ranks")
    assert (ranks.able, "gloo" in ranks.about) == (True, True)
    # Nobody on a CPU misses these.
    assert told(CPU, "compile") == Ability("compile", True, "with /usr/bin/g++")
    assert "on a GPU only" in told(CPU, "flash-attn").about


@pytest.mark.parametrize(
    ("cuda", "said"), [(None, "this torch is built for CPUs"), ("12.8", "can use no GPU")]
)
def test_a_gpu_that_torch_does_not_see(cuda: str | None, said: str) -> None:
    gpu = told(replace(CPU, driver=True, cuda=cuda), "train on a GPU")
    assert (gpu.able, said in gpu.about) == (False, True)


def test_a_mac() -> None:
    assert "does not use a Mac's GPU (MPS)" in told(MAC, "train on a GPU").about
    assert told(MAC, "ZeRO 1 to 3, offload").about.startswith("DeepSpeed is for Linux")
    assert told(replace(CPU, deepspeed=False), "ZeRO 1 to 3, offload").about.endswith(
        "pip install deepspeed"
    )


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ({"compiler": None}, "missing: a C++ compiler (g++, or what CXX names)"),
        ({"headers": False}, "missing: the headers of Python (python3-dev)"),
        ({"triton": False}, "missing: triton (pip install triton)"),
    ],
)
def test_what_compilation_needs(lacking: dict[str, Any], said: str) -> None:
    assert told(replace(WHOLE, **lacking), "compile") == Ability("compile", False, said)


@pytest.mark.parametrize(
    ("flash", "said"),
    [("lacking", "has no flash_attn_varlen_func"), ("none", "pip install 'bc2[cuda]'")],
)
def test_a_flash_attn_that_cannot_be_used(flash: Any, said: str) -> None:
    kernels = told(replace(WHOLE, flash=flash), "flash-attn")
    assert (kernels.able, said in kernels.about) == (False, True)
    assert "torch's own attention" in kernels.about


def test_a_container_without_a_sandbox() -> None:
    facts = replace(WHOLE, sandbox=None, sandbox_lacks="no namespaces; no Landlock")
    programs = told(facts, "evaluate on HumanEval, MBPP")
    assert not programs.able
    assert "only in the sandbox: no namespaces; no Landlock. Other benchmarks" in programs.about


def test_facts_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    facts = look("namespaces")
    assert (facts.system, facts.sandbox, facts.compiler) == (sys.platform, "namespaces", None)
    monkeypatch.delenv("CXX")
    assert look(None, "it lacks").compiler == shutil.which("g++")
    assert facts.gpus == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("contents", "expected"),
    [({"flash_attn_varlen_func": 1}, "there"), ({"flash_attn_func": 1}, "lacking")],
)
def test_flash_attn_must_have_the_function_that_is_used(
    contents: dict[str, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(**contents))  # type: ignore[misc]
    assert look("namespaces").flash == expected
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # type: ignore[arg-type]
    assert look("namespaces").flash == "lacking"

"""Which calls go by Triton's front door, and that their results are those of kernels that are launched directly."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import triton

from dllm_kernels import checks, dllm_post_process_fused, gpu
from tests.calls import DEVICE, call, make_case

HOOKS = pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])


@pytest.fixture(autouse=True)
def _nothing_is_kept():
    checks.check_layout.cache_clear()
    yield
    checks.check_layout.cache_clear()


def _compiled(**launcher):
    """What Triton 3.6 hands back of a launch, as far as it is looked at."""
    ready = {"launch_cooperative_grid": False, "launch_pdl": True, "global_scratch_size": 0, "profile_scratch_size": 0}
    return SimpleNamespace(
        function=1, packed_metadata=(), run=SimpleNamespace(launch=lambda *_: None, **{**ready, **launcher})
    )


@pytest.mark.parametrize(
    ("triton_version", "hip", "launcher", "directly"),
    [
        ("3.6.0", None, {}, True),
        ("3.7.0", None, {}, False),
        ("3.60.0", None, {}, False),
        ("3.6.0", "6.4", {}, False),
        ("3.6.0", None, {"global_scratch_size": 128}, False),  # memory that only the front door allocates
        ("3.6.0", None, {"profile_scratch_size": 128}, False),
    ],
    ids=["known", "another version", "a longer version", "AMD", "scratch", "scratch of a profile"],
)
def test_what_is_launched_directly(monkeypatch, triton_version, hip, launcher, directly):
    monkeypatch.setattr(triton, "__version__", triton_version)
    monkeypatch.setattr(torch.version, "hip", hip)
    plan = gpu._Plan(torch.zeros(2, 4, 100), torch.zeros(2, 4, dtype=torch.int64), True, None, None, False)
    compiled = _compiled(**launcher)
    plan.keep(compiled)
    assert plan.launch is (compiled.run.launch if directly else None)


@pytest.mark.parametrize(
    ("dtype", "vocab", "excluded", "rows", "registers"),
    [
        (torch.float16, 12_800, True, 32, gpu.REGISTERS),
        (torch.bfloat16, 5_025, True, 32, gpu.REGISTERS),
        (torch.float32, 5_025, True, 32, gpu.REGISTERS),
        (torch.float32, 12_800, True, 32, None),
        (torch.float16, 5_025, False, 32, None),
        (torch.float16, 5_025, True, 1000, None),
        (torch.float16, 1_000, True, 32, None),
    ],
    ids=["16 bits", "any byte", "any byte, float32", "float32", "no ids", "many rows", "a short row"],
)
def test_few_rows_with_ids_excluded_are_held_to_registers(dtype, vocab, excluded, rows, registers):
    logits, ids = torch.zeros(1, rows, vocab, dtype=dtype), torch.zeros(1, rows, dtype=torch.int64)
    assert gpu._Plan(logits, ids, True, None, None, excluded).max_registers == registers


OPTIONS = {
    "prompt_mask": lambda ids: torch.zeros_like(ids, dtype=torch.bool),
    "exclude_ids": lambda ids: (1,),
    "edit_threshold": lambda ids: 0.5,
    "threshold": lambda ids: torch.full((len(ids),), 0.5, device=DEVICE),
    "confidence": lambda ids: torch.empty_like(ids, dtype=torch.float32),
    "tokens": torch.empty_like,
    "accepted": lambda ids: torch.empty_like(ids, dtype=torch.bool),
    "remaining": lambda ids: torch.empty(len(ids), dtype=torch.int32, device=DEVICE),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_call_with_an_option_is_launched_otherwise_than_one_without(monkeypatch, option):
    """Or it would be given a kernel from which the option was compiled out."""
    planned = []

    class Noted(gpu._Plan):
        def __init__(self, *layout):
            super().__init__(*layout)
            planned.append(self)

    monkeypatch.setattr(gpu, "_Plan", Noted)
    logits, ids = torch.zeros(2, 4, 100, device=DEVICE), torch.zeros(2, 4, dtype=torch.int64, device=DEVICE)
    options = {"threshold": 0.5, option: OPTIONS[option](ids)}
    for given in ({"threshold": 0.5}, options, {"threshold": 0.7}, options):
        dllm_post_process_fused(logits, ids, 0, **given, backend="triton")
    assert len(planned) == 2


@HOOKS
def test_while_a_hook_listens_nothing_is_launched_directly(monkeypatch, hook):
    class Kept(gpu._Plan):
        def __init__(self, *layout):
            super().__init__(*layout)
            self.launch = lambda *_: pytest.fail("launched directly, which no hook hears")

    monkeypatch.setattr(gpu, "_Plan", Kept)
    monkeypatch.setattr(triton.knobs.runtime, hook, triton.knobs.HookChain())
    getattr(triton.knobs.runtime, hook).add(lambda _: None)
    case = make_case(2, 4, 1000, threshold=0.5)
    assert call(case, "triton", DEVICE).input_ids.equal(call(case, "reference", "cpu").input_ids)


@pytest.fixture
def at_the_door(monkeypatch):
    """The calls that went by Triton's front door."""
    calls = []
    run = gpu.post_process_kernel.run
    monkeypatch.setattr(
        gpu.post_process_kernel, "run", lambda *given, **options: calls.append(given) or run(*given, **options)
    )
    return calls


def _calls_agree(times):
    case = make_case(3, 32, 20_000, threshold=0.5)
    logits, prepared = case.logits.cuda(), case.input_ids.cuda()
    expected = call(case, "reference", "cpu").input_ids
    for _ in range(times):
        ids = prepared.clone()
        dllm_post_process_fused(logits, ids, case.mask_id, case.threshold)
        assert ids.cpu().equal(expected)


@pytest.mark.gpu
@pytest.mark.parametrize("versions", [gpu._DIRECT_VERSIONS, ()], ids=["known versions", "none known"])
def test_the_front_door_is_passed_once_or_always(monkeypatch, at_the_door, versions):
    monkeypatch.setattr(gpu, "_DIRECT_VERSIONS", versions)
    _calls_agree(times=3)
    assert len(at_the_door) == (1 if triton.__version__.startswith(versions) and not torch.version.hip else 3)


@pytest.mark.gpu
@HOOKS
def test_a_hook_hears_of_every_call(hook):
    _calls_agree(times=2)
    heard = []
    hear = heard.append
    getattr(triton.knobs.runtime, hook).add(hear)
    try:
        _calls_agree(times=3)
    finally:
        getattr(triton.knobs.runtime, hook).remove(hear)
    assert len(heard) == 3
    _calls_agree(times=2)
    assert len(heard) == 3

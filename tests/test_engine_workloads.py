"""The steps of engines as workloads: the plug-in's and the shipped one, checked before they are timed."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from benchmarks import engines, measure
from benchmarks.measure import engine_bench
from benchmarks.measure.bench import open_bench
from benchmarks.workloads import THRESHOLD, WORKLOADS, EngineStep, Workload

STEPS = [
    EngineStep("sglang", Workload(2, 4, 70, "fp32", 50)),
    EngineStep("sglang-joint", Workload(16, 4, 70, "fp32", 50)),
    EngineStep("diffusers", Workload(16, 4, 70, "bf16", 50)),
]


@pytest.fixture(params=STEPS, ids=[step.engine for step in STEPS])
def step(request, monkeypatch):
    try:
        engines.fetch(request.param.engine)
    except engines.NotFetchedError as error:
        pytest.skip(str(error))
    monkeypatch.setitem(WORKLOADS, request.param.name, request.param)
    return request.param


@pytest.fixture
def step_bench(step):
    return open_bench(step.name, seed=0)


def test_each_engine_s_step_is_tested():
    assert {step.engine for step in STEPS} == set(engines.STEPS)


def test_names_and_what_must_be_read():
    sglang, joint, diffusers = (EngineStep(step.engine, Workload(8, 32, 157184, "fp32", 50)) for step in STEPS)
    assert sglang.name == "sglang-8x32x157184-fp32-50"
    assert joint.name == "sglang-joint-8x32x157184-fp32-50"
    assert diffusers.name == "diffusers-8x32x157184-fp32-50"
    # A step that edits reads the rows of tokens that are there already, too.
    assert 2 * sglang.bytes_read == joint.bytes_read == diffusers.bytes_read == joint.logits_bytes


def test_the_steps_as_a_workload(step, step_bench):
    checked = step_bench.check()
    assert checked["passed"], checked
    assert checked["digest"] != open_bench(step.name, seed=1).check()["digest"]
    assert set(step_bench.warm_up()) == {"fused", "reference"}
    assert step_bench.begin("call_us") == ["fused", "reference"]
    assert len(step_bench.sample("reference", 3)) == 3
    step_bench.end()
    step_bench.close()


@pytest.mark.parametrize("name", ["fused", "reference"])
def test_every_call_does_the_same(step, step_bench, name):
    """What an engine keeps from step to step would make another call of the second."""
    left = []
    for _ in range(3):
        ids = step_bench.prepared.clone()
        step_bench.implementations[name](step_bench.draws[0], ids, step.mask_id, THRESHOLD)
        left.append(ids)
    assert left[0].equal(left[1])
    assert left[0].equal(left[2])
    was_masked, has_changed = step_bench.prepared == step.mask_id, left[0] != step_bench.prepared
    assert (was_masked & has_changed).any()
    assert bool((~was_masked & has_changed).any()) == step.edits


FUSED = {
    "sglang": ("sglang", "FusedLowConfidence"),
    "sglang-joint": ("sglang", "FusedJointThreshold"),
    "diffusers": ("diffusers", "FusedBlockRefinementScheduler"),
}


def test_the_plug_in_is_what_is_held_beside_the_shipped_step(step, step_bench, monkeypatch):
    module, name = FUSED[step.engine]
    plugin = importlib.import_module(f"dllm_kernels.integrations.{module}")
    called = []

    def note(*_: object, **__: object) -> SimpleNamespace:
        called.append(name)
        # diffusers' output; SGLang's flags are not looked at
        return SimpleNamespace(prev_sample=step_bench.prepared, transfer_index=None, editing_transfer_index=None)

    monkeypatch.setattr(getattr(plugin, name), "step", note)
    for implementation in ("reference", "fused"):
        step_bench.implementations[implementation](
            step_bench.draws[0], step_bench.prepared.clone(), step.mask_id, THRESHOLD
        )
        assert called == ([name] if implementation == "fused" else [])


@pytest.mark.parametrize("name", ["fused", "reference"])
def test_a_step_that_leaves_other_ids_fails_the_check(step_bench, name):
    honest = step_bench.implementations[name]
    step_bench.implementations[name] = lambda logits, ids, mask_id, _: honest(logits, ids, mask_id, 0.001)
    checked = step_bench.check()
    assert not checked["passed"]
    assert checked["detail"].startswith(f"{name}: ")


@pytest.mark.parametrize("blocks", ["every one", "one"])
def test_an_engine_that_is_never_told_of_a_block_s_end_fails_the_check(step, step_bench, blocks):
    honest = step_bench.implementations["fused"]

    def never_done(*arguments):
        told = honest(*arguments)
        if step.engine == "diffusers":
            return tuple(torch.zeros_like(part) if blocks == "every one" else part[:1] for part in told)
        return ([False] * (len(step_bench.prepared) if blocks == "every one" else 1),)

    step_bench.implementations["fused"] = never_done
    checked = step_bench.check()
    assert not checked["passed"]
    assert checked["detail"].startswith("fused: ")


def test_flags_that_are_not_the_shipped_step_s_fail_the_check(step_bench):
    honest = step_bench.implementations["fused"]

    def lying(*arguments):
        told = [torch.as_tensor(part) for part in honest(*arguments)]
        last = told[-1].clone()
        last.view(len(step_bench.prepared), -1)[0, 0].logical_not_()
        return (*told[:-1], last)

    step_bench.implementations["fused"] = lying
    checked = step_bench.check()
    assert not checked["passed"]
    assert checked["detail"] == "fused: of 1 blocks the engine is told something else than by its own step"


def test_a_package_without_the_plug_in_is_not_measured_if_it_is_the_base(step, monkeypatch):
    monkeypatch.setattr(engine_bench, "PLUG_INS", "dllm_kernels.nothing")
    reply = open_bench(step.name, seed=0).check()
    assert (reply["passed"], reply["absent"]) == (False, True)


@pytest.mark.parametrize("workload", STEPS, ids=[step.engine for step in STEPS])
def test_an_engine_that_is_not_here_ends_the_run_before_it_begins(workload, monkeypatch):
    def unreachable():
        raise engines.NotFetchedError("pip could not fetch sglang")

    monkeypatch.setattr(engines, "fetch_sglang", unreachable)
    monkeypatch.setattr(engines, "is_installed", lambda _engine: False)
    monkeypatch.setattr(measure, "_start", lambda *_: pytest.fail("a process was started"))
    with pytest.raises(engines.NotFetchedError, match=workload.engine.partition("-")[0]):
        measure.measure([workload])

"""The plug-in's steps beside those of SGLang's unmodified algorithm files, which come out of its released wheel.

Where SGLang is not installed, what these import beside each other and PyTorch is a stand-in (`benchmarks.engines`): its
dependencies are a CUDA build of several gigabytes. No server runs here.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import engines
from dllm_kernels import integrations
from tests.calls import DEVICE
from tests.engine_steps import SIZES, Confidence

ROOT = Path(__file__).parent.parent
MASK = 3
NAMES = ("LowConfidence", "JointThreshold")
SMALL, _ = SIZES["small"]


@pytest.fixture(scope="module")
def algorithms() -> dict[str, Any]:
    """SGLang's registry of algorithms by name, with the plug-in's among them."""
    try:
        known: dict[str, Any] = engines.load_sglang().algo_name_to_cls
    except engines.NotFetchedError as error:
        pytest.skip(str(error))
    plugin().register()
    return known


def plugin() -> ModuleType:
    from dllm_kernels.integrations import sglang

    return sglang


def build(cls: Any, block_size: int = 4, *, fdfo: bool = True, mask_id: int = MASK, **options: object) -> Any:
    return cls(
        SimpleNamespace(
            block_size=block_size, mask_id=mask_id, first_done_first_out_mode=fdfo, algorithm_config=options
        )
    )


def batch_of(input_ids: Tensor, prompt_mask: Tensor | None = None) -> SimpleNamespace:
    """A forward batch of SGLang's: ids flat."""
    return SimpleNamespace(
        batch_size=len(input_ids), input_ids=input_ids.flatten().clone(), dllm_prompt_mask=prompt_mask
    )


class Random:
    """Blocks and logits as decoding may meet them, and some that it should not."""

    def __init__(self, seed: int, *, defects: bool, vocabularies: Sequence[int] = SMALL) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.choice = random.Random(seed)
        self.defects = defects
        self.vocabularies = vocabularies

    def blocks(self) -> tuple[Tensor, Tensor | None, int]:
        """Ids (B, L), prompt mask (B, L) or None, and the vocabulary."""
        batch, length = self.choice.randint(1, 3), self.choice.choice((1, 4, 8))
        vocab = self.choice.choice(self.vocabularies)
        ids = torch.randint(vocab, (batch, length), generator=self.generator)
        masked = torch.rand(batch, length, generator=self.generator) < self.choice.random()
        ids = ids.masked_fill(masked, MASK)
        prompt_mask = torch.rand(batch, length, generator=self.generator) < 0.3
        return ids, prompt_mask if self.choice.random() < 0.5 else None, vocab

    def logits(self, ids: Tensor, vocab: int) -> Tensor:
        """(B, L, V): sure and unsure rows, some that agree with the ids; without defects, the mask is never best."""
        logits = torch.randn(*ids.shape, vocab, generator=self.generator) * self.choice.choice((1.0, 2.0, 8.0))
        is_sure = torch.rand(ids.shape, generator=self.generator) < self.choice.choice((0.0, 0.5, 1.0))
        agrees = torch.rand(ids.shape, generator=self.generator) < 0.5
        likely = torch.where(agrees, ids, torch.randint(vocab, ids.shape, generator=self.generator))
        heights = math.log(vocab) - 2 + 8 * torch.rand(ids.shape, generator=self.generator)
        logits.scatter_add_(-1, likely.unsqueeze(-1), (is_sure * heights).unsqueeze(-1))
        if not self.defects:
            logits[..., MASK] = -40.0
        elif self.choice.random() < 0.3:
            odd = torch.rand(ids.shape, generator=self.generator) < 0.3
            place = torch.randint(vocab, ids.shape, generator=self.generator)
            value = self.choice.choice((math.nan, math.inf, -math.inf))
            logits[odd, place[odd]] = value
        return logits


def is_undecidable(logits: Tensor, masked: Tensor, *thresholds: float) -> bool:
    """Whether the engine may decide otherwise than float64: at a threshold, or about the best position of a block where
    none passes; the first threshold is that of masked positions. Rows whose confidence is NaN tie too.
    """
    confidence = Confidence(logits)
    if any(confidence.is_near(threshold) for threshold in thresholds):
        return True
    falls_back = masked.any(dim=-1) & ~((confidence.exact > thresholds[0]) & masked).any(dim=-1)
    is_same = torch.eye(masked.shape[1], dtype=torch.bool, device=masked.device)
    is_best = masked & (confidence.is_above() | ~masked.unsqueeze(1) | is_same).all(dim=-1)
    return bool((falls_back & ~is_best.any(dim=-1)).any())


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that wait for each other on a busy machine make small operations a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter:UserWarning")  # in SGLang's own step
@pytest.mark.parametrize("defects", [False, True], ids=["as it is", "compatible"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("vocabularies", "least_steps"), SIZES.values(), ids=SIZES)
def test_random_steps(algorithms, name, defects, vocabularies, least_steps, record_property):
    """Ids, flags and states of every step, in blocks that go on until they are done."""
    draw = Random(seed=len(name) + defects, defects=defects, vocabularies=vocabularies)
    steps = band = 0
    while steps < least_steps:
        ids, prompt_mask, vocab = draw.blocks()
        ids, prompt_mask = ids.to(DEVICE), None if prompt_mask is None else prompt_mask.to(DEVICE)
        options: dict[str, Any] = {"threshold": draw.choice.choice((0.0, 0.3, 0.9, 2.0))}
        thresholds = [options["threshold"]]
        if name == "JointThreshold":
            options["edit_threshold"] = draw.choice.choice((0, 0.4, 0.8))
            options["max_post_edit_steps"] = draw.choice.choice((-1, 0, 0.5, 1, 3))
            options["penalty_lambda"] = draw.choice.choice((0, 1.5))
            options["vectorized_decoding"] = draw.choice.random() < 0.3
            thresholds.append(options["edit_threshold"])
        shipped = build(algorithms[name], ids.shape[1], **options)
        fused = build(algorithms[f"Fused{name}"], ids.shape[1], **options, compatible=defects)
        batch, ours = batch_of(ids, prompt_mask), batch_of(ids, prompt_mask)
        states, our_states = shipped.init_step_state(batch), fused.init_step_state(ours)
        for _ in range(8):
            before = batch.input_ids.view(ids.shape).clone()
            logits = draw.logits(before.cpu(), vocab).to(DEVICE)
            full_logits, our_logits = logits.flatten(0, 1).clone(), logits.flatten(0, 1).clone()
            done = shipped.step(batch, full_logits, states)
            our_done = fused.step(ours, our_logits, our_states)
            steps += 1
            masked = before == MASK if prompt_mask is None else (before == MASK) & ~prompt_mask
            if is_undecidable(our_logits.view_as(logits), masked, *thresholds):
                band += 1
                ours.input_ids.copy_(batch.input_ids)
                our_states = copy.deepcopy(states)
                continue
            assert our_done == done, (options, before, our_done, done)
            assert ours.input_ids.equal(batch.input_ids), (options, before, ours.input_ids, batch.input_ids)
            assert without_masks(our_states) == without_masks(states)
            if all(done):
                break
    record_property("band", f"{band} of {steps} steps")
    print(f"{name}: {band} of {steps} steps undecidable")
    assert band <= 1 + steps / 20


def test_a_threshold_between_the_shipped_softmax_and_the_probability(algorithms):
    """On a CPU the shipped softmax errs by 1e-4 at this vocabulary: there the fused step goes by the probability."""
    vocab, mask_id = 157184, 156895
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(0)).mul_(2).expand(4, vocab).clone()
    logits[:, 7] = math.log(vocab) + 2 + torch.tensor(0.9).logit()
    logits[0, 7] += 0.02  # the best: a fallback would take it alone
    confidence = Confidence(logits.unsqueeze(0))
    engine, exact = confidence.engine[0, 1].item(), confidence.exact[0, 1].item()
    assert abs(engine - exact) > 1e-5
    committed = {}
    for name in ("LowConfidence", "FusedLowConfidence"):
        algorithm = build(algorithms[name], mask_id=mask_id, threshold=(engine + exact) / 2)
        batch = batch_of(torch.full((1, 4), mask_id))
        algorithm.step(batch, logits.clone(), [None])
        committed[name] = (batch.input_ids != mask_id).tolist()
    assert committed["FusedLowConfidence"] == [True, *[exact > engine] * 3]
    assert committed["LowConfidence"] == [True, *[engine > exact] * 3]


def without_masks(states: list[Any]) -> list[Any]:
    """States of a step, but for the prompts' tensors."""
    return [None if state is None else (state["finished"], state["post_edit_steps"]) for state in states]


@pytest.mark.parametrize("fdfo", [False, True], ids=["sync", "fdfo"])
@pytest.mark.parametrize("name", NAMES)
def test_whole_runs(algorithms, name, fdfo):
    """Through SGLang's own loops, which own the states between steps."""
    for seed in range(40):
        draw = Random(seed, defects=False)
        ids, prompt_mask, vocab = draw.blocks()
        script = [draw.logits(ids, vocab).flatten(0, 1) for _ in range(40)]
        results = []
        for cls in (algorithms[name], algorithms[f"Fused{name}"]):
            batch = batch_of(ids, prompt_mask)
            algorithm = build(cls, ids.shape[1], fdfo=fdfo, threshold=0.6)
            logits = iter(script)
            runner = SimpleNamespace(forward=lambda *_, logits=logits, **__: forward_result(next(logits).clone()))
            states = None
            told = []
            for _ in range(10 if fdfo else 1):
                _, tokens, lengths, states, _ = algorithm.run(runner, batch, states)
                told.append((lists(tokens), lengths))
            results.append((told, batch.input_ids.tolist()))
        assert results[0] == results[1]


def forward_result(full_logits: Tensor) -> SimpleNamespace:
    return SimpleNamespace(logits_output=SimpleNamespace(full_logits=full_logits), can_run_graph=False)


def lists(tokens: Any) -> list[Any]:
    return [token.tolist() if isinstance(token, Tensor) else token for token in tokens]


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_read_as_shipped(algorithms, name):
    shipped, fused = algorithms[name], algorithms[f"Fused{name}"]
    assert issubclass(fused, shipped)
    for options in ({}, {"threshold": 0.25, "edit_threshold": 0.5, "penalty_lambda": 1, "max_post_edit_steps": 2}):
        theirs, ours = vars(build(shipped, **options)), vars(build(fused, **options))
        assert ours.pop("compatible") is False
        del ours["_flags"], ours["_is_compiled"]
        ours.pop("_ids", None)
        assert ours == theirs
    with pytest.raises(TypeError, match="compatible: expected true or false in the .* configuration; got 'yes'"):
        build(fused, compatible="yes")


KEYS = {
    "LowConfidence": ("threshold",),
    "JointThreshold": ("threshold", "edit_threshold", "max_post_edit_steps", "penalty_lambda"),
}


@pytest.mark.parametrize("value", [math.nan, True, False, None, "0.5", [0.5], 10**400])
@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in KEYS.items() for key in keys])
def test_what_is_no_number_ends_the_start_of_a_server(algorithms, name, key, value):
    got = re.escape(repr(value))
    with pytest.raises(TypeError, match=rf"^{key}: expected a number in the .* configuration; got {got}$"):
        build(algorithms[f"Fused{name}"], **{key: value})
    build(algorithms[f"Fused{name}"], **{key: 1})


@pytest.mark.parametrize("steps", [0.5, 16.0, math.inf])
def test_steps_that_sglang_s_loop_cannot_count_to_end_the_start_of_a_server(algorithms, steps):
    with pytest.raises(TypeError, match=rf"^max_post_edit_steps: expected a whole number .*; got {steps}$"):
        build(algorithms["FusedJointThreshold"], fdfo=False, max_post_edit_steps=steps)
    build(algorithms["FusedJointThreshold"], fdfo=True, max_post_edit_steps=steps)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_that_is_best_stalls_the_shipped_step_alone(algorithms, name):
    logits = torch.zeros(4, 20)
    logits[:, MASK] = 9.0
    logits[:, 7] = 5.0
    ids = torch.full((1, 4), MASK)
    left = {}
    cases = {"shipped": (name, {}), "compatible": (f"Fused{name}", {"compatible": True}), "fused": (f"Fused{name}", {})}
    for case, (cls, options) in cases.items():
        algorithm, batch = build(algorithms[cls], threshold=0.5, edit_threshold=0.9, **options), batch_of(ids)
        states = algorithm.init_step_state(batch)
        done = [algorithm.step(batch, logits.clone(), states) for _ in range(6)]
        left[case] = ((batch.input_ids == MASK).sum().item(), done[-1])
    assert left == {"shipped": (4, [False]), "compatible": (4, [False]), "fused": (0, [True])}


@pytest.mark.parametrize("name", NAMES)
def test_nan_comes_first_in_the_shipped_step_alone(algorithms, name):
    logits = torch.zeros(4, 20)
    logits[2, 9] = math.nan
    logits[3, 7] = 2.0
    cases = {"shipped": (name, {}), "compatible": (f"Fused{name}", {"compatible": True}), "fused": (f"Fused{name}", {})}
    committed = {}
    for case, (cls, options) in cases.items():
        algorithm, batch = build(algorithms[cls], threshold=0.9, **options), batch_of(torch.full((1, 4), MASK))
        algorithm.step(batch, logits.clone(), algorithm.init_step_state(batch))
        committed[case] = batch.input_ids.tolist()
    assert committed["shipped"] == committed["compatible"] == [MASK, MASK, 9, MASK]
    assert committed["fused"] == [MASK, MASK, MASK, 7]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_updated_where_they_are(algorithms, name):
    """SGLang's CUDA graphs hold their address."""
    algorithm, batch = build(algorithms[f"Fused{name}"]), batch_of(torch.full((2, 4), MASK))
    ids = batch.input_ids
    algorithm.step(batch, torch.randn(8, 20), algorithm.init_step_state(batch))
    assert batch.input_ids is ids
    assert (ids != MASK).any()


@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_requests(algorithms, name, compatible):
    algorithm = build(algorithms[f"Fused{name}"], compatible=compatible)
    batch = batch_of(torch.empty(0, 4, dtype=torch.int64, device=DEVICE))
    assert algorithm.step(batch, torch.empty(0, 20, device=DEVICE), algorithm.init_step_state(batch)) == []


def test_replacing_the_shipped_ones(algorithms, monkeypatch, caplog):
    sglang = plugin()
    shipped = dict(algorithms)
    caplog.set_level(logging.INFO)
    try:
        monkeypatch.setenv(sglang.REPLACE, "yes")
        for name in NAMES:
            del algorithms[f"Fused{name}"]
        with pytest.raises(ValueError, match="DLLM_KERNELS_REPLACE_SHIPPED: expected 0 or 1; got 'yes'"):
            sglang.register()
        assert algorithms == shipped
        monkeypatch.setenv(sglang.REPLACE, "0")
        sglang.register()
        assert algorithms == shipped
        assert caplog.messages == []
        monkeypatch.setenv(sglang.REPLACE, "1")
        sglang.register()
        for name in NAMES:
            build(algorithms[name])
        assert caplog.messages == [f"dllm-kernels' Fused{name} decodes" for name in NAMES]
        assert {name: algorithms[name].__name__ for name in NAMES} == {name: f"Fused{name}" for name in NAMES}
        assert algorithms["JointThresholdInDel"] is shipped["JointThresholdInDel"]
    finally:
        algorithms.update(shipped)


INSTALLED = """
import sys
sys.path[:0] = [{target!r}, {root!r}]
import logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
from benchmarks import engines
known = engines.load_sglang()
import dllm_kernels
assert dllm_kernels.__file__.startswith({target!r}), dllm_kernels.__file__
from sglang.srt.plugins import load_plugins
load_plugins()
print(known.get_algorithm_cls("FusedLowConfidence"), known.get_algorithm_cls("LowConfidence"))
"""


def test_sglang_finds_the_plug_in(algorithms, tmp_path):
    """An installed wheel, and SGLang's own plug-in loader."""
    command = [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(tmp_path), str(ROOT)], check=True)
    program = INSTALLED.format(target=str(tmp_path), root=str(ROOT))

    def output(replace: str) -> str:
        environment = {**os.environ, "DLLM_KERNELS_REPLACE_SHIPPED": replace}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = output("1")
    assert "Executed general plugin: dllm_kernels" in told
    assert told.splitlines()[-1].count("FusedLowConfidence") == 2
    told = output("true")
    assert "Failed to execute general plugin: dllm_kernels" in told
    assert told.splitlines()[-1].count("FusedLowConfidence") == 1


SERVER = """
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import prepare_server_args
arguments = prepare_server_args(
    ["--model-path", {model!r}, "--dllm-algorithm", {name!r}, "--dllm-algorithm-config", {config!r}, "--device", "cpu",
     "--load-format", "dummy", "--skip-tokenizer-init"]
)
arguments.resolve_once()
from sglang.srt.dllm.algorithm.base import DllmAlgorithm
found = DllmAlgorithm.from_server_args(arguments)
print(type(found).__module__, type(found).__name__, found.block_size, found.mask_id, found.threshold)
"""
MODEL = {
    "architectures": ["LLaDA2MoeModelLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 157184,
    "max_position_embeddings": 4096, "head_dim": 16, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.skipif(not engines.is_installed("sglang"), reason="needs SGLang itself, not some files of its wheel")
@pytest.mark.parametrize("name", NAMES)
def test_a_servers_command_line_names_the_plug_in(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    config = tmp_path / "config.yaml"
    config.write_text("threshold: 0.75\n")
    program = SERVER.format(model=str(tmp_path), name=f"Fused{name}", config=str(config))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-5:] == ["dllm_kernels.integrations.sglang", f"Fused{name}", "32", "156895", "0.75"]


@pytest.mark.parametrize("found", ["0.5.99", "0.5.23.post1", "0.5.23.post1+cu130"])
def test_another_version_is_refused(monkeypatch, found):
    monkeypatch.setattr(integrations.metadata, "version", lambda _name: found)
    with pytest.raises(RuntimeError, match=rf"sglang: expected version 0.5.23, which .* found {re.escape(found)}:"):
        integrations.require("sglang", ("0.5.23",))


def test_any_build_of_a_version_that_was_tested_is_taken(monkeypatch):
    monkeypatch.setattr(integrations.metadata, "version", lambda _name: "0.5.23+cu130")
    integrations.require("sglang", ("0.5.23",))


def test_an_engine_that_is_missing():
    with pytest.raises(RuntimeError, match=r"no-such-engine: expected version 1 or 2, .*; it is not installed"):
        integrations.require("no-such-engine", ("1", "2"))


def test_an_unreachable_registry_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "CACHE", tmp_path / "engines")
    monkeypatch.setattr(engines, "SGLANG", "0.0.0.dev0")
    with pytest.raises(engines.NotFetchedError, match="pip could not fetch sglang 0.0.0.dev0: ERROR"):
        engines.fetch_sglang()


def test_the_steps_as_peers(algorithms, monkeypatch):
    """As the kernel benchmark calls them."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 8, 50, generator=generator) * 3
    ids = torch.full((2, 8), 50)
    left = []
    for peer in (engines.sglang_low_confidence, engines.fused_in_sglang):
        left.append(ids.clone())
        assert peer(logits, left[-1], 50, 0.3) == ([False, False],)
    assert left[0].equal(left[1])
    assert not left[0].equal(ids)
    vectorized = []
    shipped = algorithms["JointThreshold"]._step_vectorized_fdfo
    monkeypatch.setattr(
        algorithms["JointThreshold"], "_step_vectorized_fdfo", lambda *a, **k: vectorized.append(1) or shipped(*a, **k)
    )
    edited = []
    for peer in (
        engines.sglang_joint_threshold,
        engines.sglang_joint_threshold_vectorized,
        engines.fused_joint_in_sglang,
    ):
        edited.append(ids.clone())
        assert peer(logits, edited[-1], 50, 0.3) == ([False, False],)
        assert len(vectorized) == (peer is not engines.sglang_joint_threshold)
    assert edited[0].equal(edited[1])
    assert edited[0].equal(edited[2])
    with pytest.raises(ValueError, match="logits: expected float32, the only dtype that SGLang passes; got .*bfloat16"):
        engines.sglang_low_confidence(logits.bfloat16(), ids, 50, 0.3)


@pytest.mark.parametrize("name", NAMES)
def test_flags_are_the_step_s_own_though_batches_grow_and_shrink(algorithms, name):
    """Memory for them is kept, and made by the first step, which may be one of inference."""
    algorithm = build(algorithms[f"Fused{name}"], 4, mask_id=99, threshold=2.0)
    kept = []
    for requests, inference in ((2, True), (5, False), (1, True), (5, False)):
        ids = torch.full((requests, 4), 99, device=DEVICE)
        ids[::2] = 7  # without masks
        batch = batch_of(ids)
        with torch.inference_mode(inference):
            states = algorithm.init_step_state(batch)
            flags = algorithm.step(batch, torch.randn(requests * 4, 100, device=DEVICE), states)
        assert flags == [request % 2 == 0 for request in range(requests)]
        kept.append(flags)
    assert kept[1] == kept[3]


@pytest.mark.parametrize(("edits", "prompts"), [(False, [True, False]), (True, [True])])
def test_the_first_step_warms_up_for_every_step(algorithms, monkeypatch, edits, prompts):
    sglang, asked = plugin(), []
    monkeypatch.setattr(sglang, "warmup", lambda vocab, **options: asked.append((vocab, options)))
    device = torch.device("cuda", 1)
    logits = SimpleNamespace(shape=(1, 32, 100), dtype=torch.float32, device=device)
    ids = SimpleNamespace(dtype=torch.int64)
    for mask_id, excluded in ((99, 1), (100, 0)):
        asked.clear()
        assert sglang._compile(logits, ids, mask_id, edits=edits)
        assert [options["prompt_mask"] for _, options in asked] == prompts
        rest = {"dtype": torch.float32, "block_length": 32, "ids_dtype": torch.int64, "exclude_ids": excluded}
        for vocab, options in asked:
            assert vocab == 100
            assert options.items() >= {**rest, "edits": edits, "outputs": ("accepted",), "device": device}.items()


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_compiled_after_the_first_step(algorithms, name):
    """SGLang makes one, of one request, before it serves."""
    from dllm_kernels.gpu import post_process_kernel

    vocab = {"LowConfidence": 5003, "JointThreshold": 5009}[name]  # which no other test has compiled for
    algorithm = build(algorithms[f"Fused{name}"], 32, mask_id=99, threshold=0.9)
    counts = []
    for requests, has_prompt in ((1, False), (1, True), (8, False), (64, False), (64, True)):
        ids = torch.full((requests, 32), 99, device=DEVICE)
        batch = batch_of(ids, ids < 0 if has_prompt else None)
        algorithm.step(batch, torch.randn(requests * 32, vocab, device=DEVICE), algorithm.init_step_state(batch))
        counts.append(sum(len(caches[0]) for caches in post_process_kernel.device_caches.values()))
    assert counts == counts[:1] * len(counts)


STATES = {
    "fresh": {},
    "finished": {"finished": True},
    "spent": {"post_edit_steps": 16},
}


@pytest.mark.gpu
@pytest.mark.parametrize("requests", [1, 8])
@pytest.mark.parametrize(
    ("name", "state", "options"),
    [
        ("LowConfidence", "fresh", {}),
        ("LowConfidence", "fresh", {"compatible": True}),
        *(("JointThreshold", state, {}) for state in STATES),
        *(("JointThreshold", state, {"compatible": True}) for state in STATES),
        ("JointThreshold", "fresh", {"penalty_lambda": 0.5}),
    ],
)
def test_one_synchronisation_and_no_copy_of_the_logits(algorithms, name, state, options, requests):
    algorithm = build(algorithms[f"Fused{name}"], 32, mask_id=156895, threshold=0.9, **options)
    logits = torch.randn(requests * 32, 157184, device=DEVICE)

    def step() -> Any:
        ids = torch.full((requests, 32), 156895, device=DEVICE)
        ids[-1, 16:] = 7
        batch = batch_of(ids, torch.zeros_like(ids, dtype=torch.bool))
        states = algorithm.init_step_state(batch)
        if states[-1]:
            states[-1].update(STATES[state])
        return lambda: algorithm.step(batch, logits, states)

    step()()  # compiles
    measured = step()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing CUDA operation") as waits:
            measured()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1
    assert torch.cuda.max_memory_allocated() - held < 2**20

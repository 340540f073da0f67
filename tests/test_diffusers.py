"""The fused scheduler beside the shipped one of the installed diffusers: alone, and in the real `LLaDA2Pipeline`."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.calls import DEVICE
from tests.engine_steps import SIZES, Confidence
from tests.oracle import TOLERANCE

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install --group engines")

MASK, END = 3, 5
FIELDS = ("prev_sample", "transfer_index", "editing_transfer_index", "sampled_tokens", "sampled_probs", "pred_logits")


def plugin() -> ModuleType:
    from dllm_kernels.integrations import diffusers

    return diffusers


def pair(**options: Any) -> tuple[Any, Any]:
    """The shipped scheduler, and the fused one from its configuration, as a user swaps them."""
    compatible = options.pop("compatible", False)
    shipped = diffusers.BlockRefinementScheduler(**options)
    return shipped, plugin().FusedBlockRefinementScheduler.from_config(shipped.config, compatible=compatible)


class Random:
    """Blocks and logits as decoding may meet them, and with `defects` some that it should not."""

    def __init__(self, seed: int, *, defects: bool, vocabularies: Sequence[int]) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.choice = random.Random(seed)
        self.defects = defects
        self.vocabularies = vocabularies

    def block(self) -> tuple[Tensor, Tensor]:
        """Ids (B, L) and logits (B, L, V)."""
        batch, length = self.choice.randint(1, 3), self.choice.choice((1, 4, 8))
        vocab = self.choice.choice(self.vocabularies)
        ids = torch.randint(vocab, (batch, length), generator=self.generator)
        ids[torch.rand(batch, length, generator=self.generator) < self.choice.random()] = MASK
        logits = torch.randn(batch, length, vocab, generator=self.generator) * self.choice.choice((1.0, 2.0, 8.0))
        is_sure = torch.rand(batch, length, generator=self.generator) < 0.5
        agrees = torch.rand(batch, length, generator=self.generator) < 0.5
        likely = torch.where(agrees, ids, torch.randint(vocab, ids.shape, generator=self.generator))
        heights = math.log(vocab) - 2 + 8 * torch.rand(batch, length, generator=self.generator)
        logits.scatter_add_(-1, likely.unsqueeze(-1), (is_sure * heights).unsqueeze(-1))
        if not self.defects:
            logits[..., MASK] = -40.0
        elif self.choice.random() < 0.3:
            odd = torch.rand(batch, length, generator=self.generator) < 0.2
            place = torch.randint(vocab, ids.shape, generator=self.generator)
            logits[odd, place[odd]] = self.choice.choice((math.nan, math.inf, -math.inf))
        return ids, logits.to(self.choice.choice((torch.float32, torch.bfloat16)))


def is_undecidable(confidence: Confidence, masked: Tensor, *thresholds: float) -> bool:
    """Whether the scheduler may decide other than float64: at a threshold, or between two positions of a block. Rows
    whose confidence is NaN tie too.
    """
    if any(confidence.is_near(threshold) for threshold in thresholds):
        return True
    is_above = confidence.is_above()
    is_ordered = is_above | is_above.mT | torch.eye(masked.shape[1], dtype=torch.bool, device=masked.device)
    return bool((masked.unsqueeze(1) & masked.unsqueeze(2) & ~is_ordered).any())


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that wait for each other on a busy machine make small operations a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("defects", [False, True], ids=["as it is", "compatible"])
@pytest.mark.parametrize(("vocabularies", "number"), SIZES.values(), ids=SIZES)
def test_random_steps(defects, vocabularies, number, record_property):
    """All that a step returns, for every schedule: fewer commits than positions, as many, and steps without any."""
    draw = Random(seed=21 + defects, defects=defects, vocabularies=vocabularies)
    timed, untimed = pair(compatible=defects), pair(compatible=defects)
    band = 0
    for _ in range(number):
        ids, logits = (tensor.to(DEVICE) for tensor in draw.block())
        threshold = draw.choice.choice((0.0, 0.3, 0.9, 2.0))
        editing_threshold = draw.choice.choice((None, 0.0, 0.4, 0.8))
        has_prompt = draw.choice.random() < 0.5
        prompt_mask = (torch.rand(ids.shape[1], generator=draw.generator) < 0.3).to(DEVICE) if has_prompt else None
        arguments = {
            "mask_token_id": MASK,
            "threshold": threshold,
            "editing_threshold": editing_threshold,
            "sampling_method": draw.choice.choice(("auto", "greedy", "multinomial")),
            "prompt_mask": prompt_mask,
        }
        timestep = draw.choice.choice((0, 1, 5, 40))
        steps = draw.choice.choice((None, 1, 3, ids.shape[1], 32))
        if steps is not None:
            for scheduler in timed:
                scheduler.set_timesteps(steps, device=DEVICE, block_length=ids.shape[1])
        theirs, ours = (
            scheduler.step(logits, timestep, ids, **arguments, return_dict=False)
            for scheduler in (untimed if steps is None else timed)
        )
        confidence = Confidence(logits)
        if is_undecidable(confidence, ids == MASK, threshold, editing_threshold or 0.0):
            band += 1
            continue
        for name, their, our in zip(FIELDS, theirs, ours, strict=True):
            if name == "sampled_probs":  # theirs may err by more than ours
                their = confidence.exact.float()
            torch.testing.assert_close(
                our, their, rtol=0, atol=TOLERANCE, equal_nan=True, msg=lambda text, n=name: f"{n}: {text}"
            )
    record_property("band", f"{band} of {number} steps")
    print(f"{band} of {number} steps undecidable")
    assert band <= 1 + number / 20


def column_major(ids: Tensor) -> Tensor:
    return ids.t().contiguous().t()


@pytest.mark.parametrize("steps", [2, 4], ids=["two a step", "one a step"])
@pytest.mark.parametrize("layout", [Tensor.clone, column_major, Tensor.int], ids=["as it is", "by columns", "int32"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"threshold": math.nan},
        {"threshold": torch.tensor(0.3)},
        {"threshold": torch.tensor([0.0, 2.0, 0.0, 2.0])},
        {"editing_threshold": torch.tensor(0.3)},
        {"prompt_mask": torch.tensor([1, 0, 1, 0])},
        {"editing_threshold": 0.3, "prompt_mask": torch.tensor([True, False, True, False])},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_arguments_of_any_kind_do_what_they_did(arguments, layout, steps):
    """As many blocks as positions, so that a threshold of each position could be taken for one of each block. What is
    written with int32 ids is what is written with int64, which the shipped scheduler asks for."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 4, 20, generator=generator) * 3
    logits[..., MASK] = -40.0
    ids = torch.randint(6, 20, (4, 4), generator=generator)
    ids[torch.rand(4, 4, generator=generator) < 0.6] = MASK
    shipped, fused = pair()
    for scheduler in (shipped, fused):
        scheduler.set_timesteps(steps, block_length=4)
    given = {"mask_token_id": MASK, "threshold": 0.5, "return_dict": False, **arguments}
    theirs = shipped.step(logits, 0, ids, **given)
    ours = fused.step(logits, 0, layout(ids), **given)
    for name, their, our in zip(FIELDS, theirs, ours, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=TOLERANCE, msg=lambda text, n=name: f"{n}: {text}")


def test_finding_the_end():
    """`check_eos_finished` on random sequences."""
    generator, choice = torch.Generator().manual_seed(4), random.Random(4)
    shipped, fused = pair()
    for _ in range(2000):
        batch, length, block = choice.randint(1, 4), choice.randint(4, 10), choice.randint(1, 4)
        sequences = torch.randint(2, 7, (batch, length), generator=generator)
        tokens = torch.randint(3, 7, (batch, block), generator=generator)
        transfer = torch.rand(batch, block, generator=generator) < 0.6
        finished = torch.rand(batch, generator=generator) < 0.2
        arguments = {"eos_token_id": END, "mask_token_id": MASK, "prompt_length": choice.randint(0, length)}
        expected = shipped.check_eos_finished(sequences, tokens, transfer, finished.clone(), **arguments)
        assert fused.check_eos_finished(sequences, tokens, transfer, finished, **arguments).equal(expected)
        assert finished.equal(expected)


class Model(nn.Module):
    """A small model: embeddings mixed along the sequence; no two positions see the same."""

    def __init__(self, vocab: int = 40, seed: int = 0, *, best: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(torch.randn(vocab, 24, generator=generator))
        self.places = nn.Parameter(torch.randn(512, 24, generator=generator))
        self.head = nn.Parameter(torch.randn(24, vocab, generator=generator))
        self.best = best
        self.config = SimpleNamespace(model_type="small")

    @property
    def dtype(self) -> torch.dtype:
        return self.head.dtype

    @property
    def device(self) -> torch.device:
        return self.head.device

    def forward(self, ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> SimpleNamespace:
        hidden = self.embedding[ids] * attention_mask.unsqueeze(-1) + self.places[position_ids]
        hidden = torch.tanh(hidden + hidden.cumsum(dim=1) / (position_ids.unsqueeze(-1) + 1) + hidden.roll(1, dims=1))
        logits = hidden @ self.head
        if self.best is not None:
            logits[..., self.best] = 100.0
        else:
            logits[..., MASK] = -40.0
        return SimpleNamespace(logits=logits)


def generate(scheduler: Any, model: nn.Module, prompts: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """What the real pipeline returns, and the block after each of its steps."""
    pipe = diffusers.LLaDA2Pipeline(model=model, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    blocks = []

    def keep(_pipe: Any, _step: int, _timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        blocks.append(tensors["block_x"].clone())
        return tensors

    output = pipe(
        input_ids=prompts, mask_token_id=MASK, eos_token_id=END, output_type="seq", callback_on_step_end=keep, **options
    )
    return output.sequences, blocks


OPTIONS = {
    "defaults": {},
    "no edits": {"editing_threshold": None, "threshold": 0.4},
    "few steps": {"num_inference_steps": 3, "threshold": 2.0},
    "more steps than positions": {"num_inference_steps": 20, "editing_threshold": 0.3},
    "no early stop": {"eos_early_stop": False},
    "sampled": {"temperature": 0.8, "top_k": 10},
    "nucleus": {"temperature": 1.2, "top_p": 0.8, "sampling_method": "auto"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_the_pipeline_makes_the_same_tokens(options, seed):
    prompts = torch.randint(6, 40, (1 + seed % 3, 5), generator=torch.Generator().manual_seed(seed))
    results = []
    for scheduler in pair(block_length=8):
        generator = torch.Generator().manual_seed(9)
        results.append(
            generate(
                scheduler, Model(seed=seed), prompts, gen_length=20, block_length=8, generator=generator, **options
            )
        )
    (theirs, their_blocks), (ours, our_blocks) = results
    assert ours.equal(theirs)
    assert len(our_blocks) == len(their_blocks)
    assert all(ours.equal(theirs) for ours, theirs in zip(our_blocks, their_blocks, strict=True))


def test_the_mode_without_a_mask_is_the_shipped_one():
    logits, ids = torch.randn(2, 8, 30), torch.zeros(2, 8, dtype=torch.int64)
    left = []
    for scheduler in pair():
        scheduler.set_timesteps(4, block_length=8)
        generator = torch.Generator().manual_seed(2)
        left.append([scheduler.step(logits, step, ids, generator=generator).prev_sample for step in range(4)])
    assert torch.stack(left[0]).equal(torch.stack(left[1]))


@pytest.mark.parametrize("name", ["defaults", "sampled", "nucleus"])
def test_a_mask_that_is_best_is_left_by_the_shipped_scheduler_alone(name):
    options = {**OPTIONS[name], "eos_early_stop": False}  # behind the end of a sequence masks stay
    prompts = torch.full((1, 4), 9)
    masks = {}
    shipped, fused = pair(block_length=8)
    compatible = pair(block_length=8, compatible=True)[1]
    for name, scheduler in {"shipped": shipped, "compatible": compatible, "fused": fused}.items():
        options["generator"] = torch.Generator().manual_seed(9)
        tokens, _ = generate(scheduler, Model(best=MASK), prompts, gen_length=12, block_length=8, **options)
        masks[name] = int((tokens == MASK).sum())
    assert masks == {"shipped": 12, "compatible": 12, "fused": 0}


def test_drawing_writes_no_logits_and_takes_a_mask_outside_the_vocabulary():
    logits = torch.randn(2, 4, 20, generator=torch.Generator().manual_seed(6))
    for mask in (MASK, 20):
        _, fused = pair()
        fused.set_timesteps(4, block_length=4)
        output = fused.step(logits.clone(), 0, torch.full((2, 4), mask), mask_token_id=mask, temperature=1.0)
        assert output.pred_logits.equal(logits)
        assert (output.prev_sample != mask).sum() >= 2


@pytest.mark.parametrize("compatible", [False, True])
def test_a_row_that_cannot_be_drawn_from_ends_either_scheduler(compatible):
    logits = torch.zeros(1, 4, 20)
    logits[0, 2, 9] = math.nan
    for scheduler in pair(compatible=compatible):
        scheduler.set_timesteps(4, block_length=4)
        with pytest.raises(RuntimeError, match="probability tensor contains either `inf`, `nan` or element < 0"):
            scheduler.step(logits, 0, torch.full((1, 4), MASK), mask_token_id=MASK, temperature=1.0)


def test_nan_comes_first_in_the_shipped_scheduler_alone():
    logits, ids = torch.zeros(1, 4, 20), torch.full((1, 4), MASK)
    logits[0, 2, 9] = math.nan
    logits[0, 3, 7] = 2.0
    shipped, fused = pair()
    compatible = pair(compatible=True)[1]
    left = {}
    for name, scheduler in {"shipped": shipped, "compatible": compatible, "fused": fused}.items():
        scheduler.set_timesteps(4, block_length=4)
        left[name] = scheduler.step(logits, 0, ids, mask_token_id=MASK).prev_sample.tolist()
    assert left["shipped"] == left["compatible"] == [[MASK, MASK, 9, MASK]]
    assert left["fused"] == [[MASK, MASK, MASK, 7]]


def test_the_configuration_is_kept(tmp_path):
    _, fused = pair(block_length=16, threshold=0.6, editing_threshold=0.4, compatible=True)
    fused.save_config(tmp_path)
    again = type(fused).from_pretrained(tmp_path)
    for name in ("block_length", "threshold", "editing_threshold", "compatible"):
        assert again.config[name] == fused.config[name]
    assert again.config.compatible is True


def test_the_configuration_is_kept_by_whatever_is_made_of_it():
    shipped, fused = pair(block_length=8, threshold=0.6, editing_threshold=0.4)
    made = type(fused).from_config(shipped.config)
    for again in (
        type(fused).from_config(made.config),
        type(fused).from_config(made.config, compatible=True),
        type(shipped).from_config(made.config),
    ):
        for name in ("block_length", "threshold", "editing_threshold"):
            assert again.config[name] == shipped.config[name]


def test_a_pipeline_that_was_saved_is_loaded_with_its_scheduler(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    _, fused = pair(block_length=8)
    pipe = diffusers.LLaDA2Pipeline(model=transformers.LlamaForCausalLM(config), scheduler=fused)
    pipe.save_pretrained(tmp_path)
    again = diffusers.LLaDA2Pipeline.from_pretrained(tmp_path).scheduler
    assert type(again) is type(fused)
    assert again.config.block_length == 8


@pytest.mark.gpu
def test_a_step_waits_for_nothing():
    _, fused = pair()
    fused.set_timesteps(32, device=DEVICE, block_length=32)
    logits = torch.randn(4, 32, 157184, device=DEVICE, dtype=torch.bfloat16)
    ids = torch.full((4, 32), MASK, device=DEVICE)
    prompt_mask = torch.zeros(32, dtype=torch.bool, device=DEVICE)  # as the pipeline gives one
    arguments = {"mask_token_id": MASK, "editing_threshold": 0.5, "prompt_mask": prompt_mask}
    fused.step(logits, 0, ids, **arguments)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        fused.step(logits, 0, ids, **arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")

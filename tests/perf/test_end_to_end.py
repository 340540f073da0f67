"""What decoding must reach at LLaDA2.0-mini's size, on a GPU with memory for it."""

from __future__ import annotations

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks import results
from benchmarks.e2e.record import EndToEnd

pytestmark = pytest.mark.gpu
BEYOND_US = 60  # of a step, outside the forward pass, besides the operation itself
SHARE = 0.9  # of the gain that Amdahl's law allows


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> EndToEnd:
    memory_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    if memory_gb < 64:
        pytest.skip(f"needs a GPU with 64 GB of memory; this one has {memory_gb:.0f}")
    path = tmp_path_factory.mktemp("e2e") / "e2e.json"
    # More than the 128 slots: some wait, and enter while others are at work.
    assert cli.main(["e2e", "--random", "--questions", "200", "--repeats", "3", "--output", str(path)]) == 0
    return results.load(EndToEnd, path)


@pytest.mark.parametrize("number", [0, 1], ids=["1 request", "128 in parallel"])
def test_little_is_left_outside_the_forward_pass(record: EndToEnd, number: int) -> None:
    load = record.loads[number].name
    outside_us = record.mean_outside_us(load, "fused")
    assert outside_us is not None
    assert outside_us <= record.device_us[load] + BEYOND_US


@pytest.mark.parametrize("number", [0, 1], ids=["1 request", "128 in parallel"])
def test_the_gain_is_nearly_what_amdahl_allows(record: EndToEnd, number: int) -> None:
    load = record.loads[number].name
    assert record.gain(load, "fused") - 1 >= SHARE * (record.bound(load) - 1)

"""Where the tests run: Triton's interpreter without a GPU, else the GPU; and how often the undecidable band was met."""

from __future__ import annotations

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

from tests import oracle  # noqa: E402


def pytest_configure() -> None:
    """Give Triton's interpreter the GPU's maximum, which takes the number beside a NaN."""
    if HAS_GPU:
        return
    import numpy
    from triton.runtime.interpreter import InterpreterBuilder

    InterpreterBuilder.create_maxnumf = lambda self, left, right: self.binary_op(left, right, numpy.fmax)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; none here"))
        if item.get_closest_marker("two_gpus") and torch.cuda.device_count() < 2:
            item.add_marker(pytest.mark.skip(reason=f"needs two CUDA GPUs; {torch.cuda.device_count()} here"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if oracle.BAND.rows:
        terminalreporter.write_line(
            f"undecidable band (|confidence - threshold| <= {oracle.TOLERANCE:g}, or a fallback gap as small): "
            f"{oracle.BAND.met} of {oracle.BAND.rows} rows checked"
        )

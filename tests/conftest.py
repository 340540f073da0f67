"""Where the tests run: Triton's interpreter without a GPU, else the GPU; which of them have the machine to themselves;
and how often the undecidable band was met."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

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


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Those that the Triton backend makes for every layout that is met, none of them kept for other tests."""
    from dllm_kernels import checks, gpu

    made: list[Any] = []
    make_plan = gpu._Plan
    monkeypatch.setattr(gpu, "_Plan", lambda *given: made.append(make_plan(*given)) or made[-1])
    checks.check_layout.cache_clear()
    yield made
    checks.check_layout.cache_clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """Beside each other, tests run one thread each; those that measure run alone, with all threads.

    Nobody passes the turnstile while a test that measures waits behind it: else it would wait for all the others.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    alone = item.get_closest_marker("measures") is not None
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        places = (
            Path(tempfile.gettempdir()) / f"dllm-kernels-tests-{os.getuid()}-{name}"
            for name in ("turnstile", "machine")
        )
        turnstile, machine = (stack.enter_context(place.open("w")) for place in places)
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(turnstile, fcntl.LOCK_UN)
            torch.set_num_threads(1)
        stack.callback(torch.set_num_threads, threads)
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Modules are dealt in this order: what takes half of the time does not begin last.
    items.sort(key=lambda item: item.path.name != "test_post_process.py")
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; none here"))
        if item.get_closest_marker("two_gpus") and torch.cuda.device_count() < 2:
            item.add_marker(pytest.mark.skip(reason=f"needs two CUDA GPUs; {torch.cuda.device_count()} here"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["band"] = (oracle.BAND.rows, oracle.BAND.met)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    rows, met = getattr(node, "workeroutput", {}).get("band", (0, 0))
    oracle.BAND.rows += rows
    oracle.BAND.met += met


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if oracle.BAND.rows:
        terminalreporter.write_line(
            f"undecidable band (|confidence - threshold| <= {oracle.TOLERANCE:g}, or a fallback gap as small): "
            f"{oracle.BAND.met} of {oracle.BAND.rows} rows checked"
        )

"""pytest-benchmark over the project's own samples: measured once in fresh processes, replayed by a virtual clock."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.logger import PytestBenchmarkWarning

from benchmarks import gate, measure, session, workloads
from benchmarks.measure import machine
from benchmarks.results import Run

SAVED = pytest.StashKey[set[str]]()  # tests in every run that is compared with


@pytest.fixture(scope="session")
def judged(pytestconfig: pytest.Config) -> tuple[Run, gate.Judgement]:
    """The quick workloads, measured and judged as `python -m benchmarks bench --quick` does, further looks included;
    with --benchmark-compare, on a GPU, beside its reviewed baseline, which has to be there."""
    if pytestconfig.getoption("benchmark_compare") and measure.has_gpu():
        session.expect_baseline(measure.device())
    chosen, skipped = workloads.select(None, gpu=torch.cuda.is_available(), quick=True)
    asked = [workload.name for workload in chosen]
    run, judgement, _ = session.judged(
        chosen, lambda run: gate.judge(run, session.case_of(run, asked=asked)), skipped=skipped
    )
    return run, judgement


@pytest.fixture(scope="session")
def run(judged: tuple[Run, gate.Judgement]) -> Run:
    return judged[0]


class VirtualClock:
    """A timer that shows what it is told: pytest-benchmark then keeps samples that were taken elsewhere."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def replay(self, samples: list[float]) -> Iterator[None]:
        for sample in samples:
            self.now += sample
            yield


CLOCK = VirtualClock()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # It tells of a missing saved run by a warning; as an error, that would be an internal one of pytest's, which puts
    # its filters in place after this hook (9.1) or before it (9.2).
    config.addinivalue_line("filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning")
    warnings.filterwarnings("default", category=PytestBenchmarkWarning)
    if config.getoption("benchmark_compare") and config.getoption("numprocesses", None):
        raise pytest.UsageError("with -n pytest-benchmark compares nothing: leave it out")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    machine_info["device"] = machine.describe_environment().device


def pytest_benchmark_compare_machine_info(
    config: pytest.Config, benchmarksession: object, machine_info: dict, compared_benchmark: dict
) -> None:
    """A comparison with another device says nothing: refuse it."""
    other = compared_benchmark["machine_info"].get("device")
    if other != machine_info["device"]:
        raise pytest.UsageError(f"the saved run was measured on {other}, this one on {machine_info['device']}")
    names = {benchmark["fullname"] for benchmark in compared_benchmark["benchmarks"]}
    config.stash[SAVED] = config.stash.get(SAVED, names) & names


def pytest_collection_finish(session: pytest.Session) -> None:
    """pytest-benchmark compares what the saved run has, if there is one, and passes the rest: refuse that too."""
    if session.config.getoption("benchmark_compare") and SAVED not in session.config.stash:
        raise pytest.UsageError("there is no saved run to compare with: save one with --benchmark-autosave")
    for name, what in (("disable", "compared"), ("skip", "compared"), ("only", "judged by the gate")):
        if session.config.getoption("benchmark_compare") and session.config.getoption(f"benchmark_{name}"):
            raise pytest.UsageError(f"with --benchmark-{name} nothing would be {what}: leave it out")
    series = {item.nodeid for item in session.items if "benchmark" in getattr(item, "fixturenames", ())}
    if missing := sorted(series - session.config.stash.get(SAVED, series)):
        raise pytest.UsageError(f"the saved run lacks {', '.join(missing)}: save a new one with --benchmark-autosave")

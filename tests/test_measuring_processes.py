"""Measuring processes and what they are given: they end with whoever drives them, and leave the checkout alone."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import measure
from benchmarks.measure import machine, sides
from benchmarks.measure.nursery import Nursery
from benchmarks.results import State
from benchmarks.workloads import Workload
from tests.records import CPU

ROOT = Path(__file__).parent.parent
TINY = Workload(2, 4, 1500, "fp32", 50)


@pytest.fixture
def package(tmp_path):
    """A copy of the package that does something else first."""

    def side(statement):
        sides.copy_package(tmp_path)
        init = tmp_path / "dllm_kernels" / "__init__.py"
        init.write_text(f"{statement}\n{init.read_text()}")
        return sides.Side(tmp_path, State("c" * 40, False, "a copy"))

    return side


def test_a_failed_worker_is_an_error_that_shows_its_output(package):
    with pytest.raises(RuntimeError, match="a measuring process ended(.|\n)*out of memory"):
        measure.measure([TINY], head=package("raise SystemExit('out of memory')"), processes=1)


def test_a_talkative_worker_is_not_stopped_by_a_full_pipe(package):
    talkative = package("import sys; sys.stderr.write('x' * 2**20); print('y' * 2**20)")
    assert measure.measure([], head=talkative, processes=1).environment.commit == "c" * 40


def test_a_worker_measures_the_package_it_was_given(package):
    with pytest.raises(RuntimeError, match="the given one"):
        measure.measure([], head=package("raise ImportError('the given one')"), processes=1)


def test_a_checkout_that_changes_while_measured_is_an_error():
    def worker(**changes):
        fields = dataclasses.asdict(dataclasses.replace(CPU, **changes))
        return SimpleNamespace(receive=lambda: {"environment": fields, "file": f"of {fields['commit']}"})

    same = [{"head": worker(), "base": worker(commit="of base")}, {"head": worker()}]
    files = {"head": f"of {CPU.commit}", "base": "of of base"}
    assert measure._common_environment(same, sides.INSTALLED) == (CPU, files)
    with pytest.raises(RuntimeError, match="the checkout changed"):
        measure._common_environment([*same, {"head": worker(commit="another")}], sides.INSTALLED)


def test_no_worker_outlives_its_conductor_and_while_it_does_the_machine_is_locked(tmp_path, monkeypatch):
    """Killed as hard as can be: worker and parent end with their sockets, a worker at work when that has ended."""
    monkeypatch.setenv("DLLM_KERNELS_LOCKS", str(tmp_path))
    code = """
import time
from benchmarks.measure.machine import lock
from benchmarks.measure.nursery import nursery
from benchmarks.measure.sides import INSTALLED
with lock("x") as held:
    worker = nursery().worker(INSTALLED, held)
    worker.receive()
    print(worker.pid, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as conductor:
        assert conductor.stdout is not None
        pid = int(conductor.stdout.readline())
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert parent != conductor.pid
        assert _runs(pid)
        assert _runs(parent)
        os.kill(pid, signal.SIGSTOP)
        conductor.kill()
        conductor.wait()
    descriptor = os.open(tmp_path / "dllm-kernels-x.lock", os.O_RDONLY)
    assert not machine.locked(descriptor)
    os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (_runs(pid) or _runs(parent)):
        time.sleep(0.1)
    assert not _runs(pid)
    assert not _runs(parent)
    assert machine.locked(descriptor)
    os.close(descriptor)


def test_either_side_is_the_first_to_start_as_often(monkeypatch):
    """Where one is always the first, it has the better place in memory."""
    begun = []

    class Stand:
        pid = 0

        def worker(self, side, lock):
            begun.append(side)
            return self

        def kill(self):
            pass

        wait = kill

    monkeypatch.setattr(measure, "nursery", Stand)
    with measure._start({"head": "head", "base": "base"}, range(4), -1):
        assert begun == ["head", "base", "base", "head"] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_is_interrupted_while_pytorch_is_imported_leaves_no_process_and_no_traceback_of_it(number, tmp_path):
    code = """
import signal
import subprocess
from benchmarks.measure.nursery import Nursery
signal.signal(signal.SIGINT, signal.default_int_handler)
class Told(subprocess.Popen):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        print(self.pid, flush=True)
subprocess.Popen = Told
try:
    Nursery()
except KeyboardInterrupt:
    pass
"""
    errors = tmp_path / "errors"
    with (
        errors.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True
        ) as conductor,
    ):
        assert conductor.stdout is not None
        pid = int(conductor.stdout.readline())
        time.sleep(0.2)  # it waits for the parent's first word
        conductor.send_signal(number)
        conductor.wait()
        if number == signal.SIGINT:
            assert not _runs(pid)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and _runs(pid):
            time.sleep(0.1)
    assert not _runs(pid)
    assert errors.read_text() == ""


def test_the_parent_of_workers_ends_before_its_own_does():
    made = "from benchmarks.measure.nursery import nursery; print(nursery()._process.pid, flush=True)"
    for end in ("", "; raise SystemExit(130)"):
        done = subprocess.run([sys.executable, "-c", made + end], cwd=ROOT, capture_output=True, text=True)
        assert not _runs(int(done.stdout))


def test_a_parent_of_workers_that_was_killed_is_an_error_that_says_so():
    parent = Nursery()
    parent._process.kill()
    parent._process.wait()
    with pytest.raises(RuntimeError, match="parent of the measuring processes has ended"):
        parent.worker(sides.INSTALLED, 0)
    parent._socket.close()


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_commit_is_measured_without_touching_the_checkout():
    with sides.commit("HEAD") as side:
        assert (side.folder / "dllm_kernels" / "reference.py").exists()
        assert (
            side.state.commit
            == subprocess.run(
                ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
        )
        folder = side.folder
    assert not folder.exists()
    with (
        pytest.raises(ValueError, match="expected a commit of this repository; got 'nowhere'"),
        sides.commit("nowhere"),
    ):
        pass


def test_what_a_killed_run_left_behind_is_removed_by_the_next_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import time\nfrom benchmarks.measure import sides\nwith sides.working_tree() as side:\n"
        "    print(side.folder, flush=True)\n    time.sleep(600)"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        folder = Path(other.stdout.readline().strip())
        with ExitStack() as stack:
            stack.callback(other.kill)
            one, two = map(stack.enter_context, (sides.working_tree(), sides.temporary_folder()))
            assert folder.is_dir()
            other.kill()
            other.wait()
            assert folder.is_dir()
            with sides.temporary_folder():
                assert not folder.exists()
            assert (one.folder / "dllm_kernels" / "cpu.py").exists()
            assert two.is_dir()
    assert not list(tmp_path.glob("dllm_kernels-*"))

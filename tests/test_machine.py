"""The machine that is measured on: one run at a time on a GPU, processors of one's own, the commit of a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from asv.machine import Machine, MachineCollection

from benchmarks.history import machine as history_machine
from benchmarks.measure import machine
from tests.records import make_run, steady

ROOT = Path(__file__).parent.parent


def test_two_runs_take_different_processors(tmp_path, monkeypatch):
    monkeypatch.setenv("DLLM_KERNELS_LOCKS", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5}, raising=False)
    with machine.cores(2) as first, machine.cores(2) as second, machine.cores(2) as third:
        assert (first, second, third) == ([5, 4], [3, 3], [None, None])
    with machine.cores(1) as again:
        assert again == [5]


def test_two_runs_on_one_gpu_wait_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("DLLM_KERNELS_LOCKS", str(tmp_path))
    code = "from benchmarks.measure import machine\nwith machine.lock('x', print): print('mine')"
    with machine.lock("x"):
        command = [sys.executable, "-u", "-c", code]  # its first line is to be read before it ends
        other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert "waiting for it" in other.stdout.readline()
        assert other.poll() is None
    assert other.communicate(timeout=60)[0] == "mine\n"


def test_waiting_for_a_processor_is_seen():
    """Two busy threads on one processor: each waits for the other."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the test pins processors, which this system cannot")
    code = (
        "import os, sys, time, threading; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "other = os.fork()\n"
        "end = time.monotonic() + 0.5\n"
        "while time.monotonic() < end: pass\n"
        "if other:\n"
        "    os.waitpid(other, 0)\n"
        "    from benchmarks.measure.machine import waited_ns\n"
        "    print(waited_ns())\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(printed) > 50e6


def test_commit_of_a_checkout_and_of_none(tmp_path, monkeypatch):
    monkeypatch.delenv("DLLM_KERNELS_COMMIT", raising=False)
    assert machine.commit_of(tmp_path) == (None, True)
    monkeypatch.setenv("DLLM_KERNELS_COMMIT", "abc")
    assert machine.commit_of(tmp_path) == ("abc", False)


def test_a_file_that_git_does_not_know_may_be_what_is_imported(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "code.py").write_text("x = 1\n")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    for arguments in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "x"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    (tmp_path / "notes.txt").write_text("beside the package")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "code.pyc").write_text("")
    assert machine.commit_of(package)[1] is False
    (package / "code").mkdir()
    (package / "code" / "__init__.py").write_text("x = 2\n")  # in the place of code.py
    assert machine.commit_of(package)[1] is True


def test_the_image_is_part_of_what_was_measured_with(monkeypatch):
    """Kept in the record, since a record enters history on another host."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "DLLM_KERNELS_IMAGE=${BASE_IMAGE}" in dockerfile
    monkeypatch.setenv("DLLM_KERNELS_IMAGE", "pytorch:1@sha256:0123")
    environment = machine.describe_environment()
    assert environment.image == "pytorch:1@sha256:0123"
    run = make_run(steady(), environment)
    monkeypatch.delenv("DLLM_KERNELS_IMAGE")
    assert history_machine.measured_with(run)["image"] == "pytorch:1@sha256:0123"
    assert machine.describe_environment().image is None


@pytest.mark.parametrize("told", [None, "runner-7", "ours"])
def test_asv_that_keeps_results_under_another_name_is_told_what_to_run(tmp_path, monkeypatch, told):
    """As after `asv machine --yes`, which names a machine after its host."""
    monkeypatch.setenv("HOME", str(tmp_path))
    environment = make_run(steady()).environment
    if told == "runner-7":
        MachineCollection.save(Machine.get_unique_machine_name(), {"machine": told})
    if told == "ours":
        history_machine.register(environment)
        history_machine.expect_registered(environment)
        return
    with pytest.raises(RuntimeError, match=f"under {told or 'no name yet'}.*`python -m benchmarks machine`"):
        history_machine.expect_registered(environment)

"""The image, built by a real engine, and each of its commands. They run without a network and on a root that cannot be
written to, as a user that the image does not know, but where a test says otherwise."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import docker
import pytest
from docker.models.images import Image

from benchmarks import results
from tests.containers.conftest import CALLER, ROOT, Runner, timed
from tests.records import NAME, make_run, steady

QUICK = ("--workload", "1x32x50257-fp16-100", "--processes", "1")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


HEAD = git(ROOT, "rev-parse", "HEAD")  # that the image is built of


def inside(run: Runner, program: str, *arguments: str) -> str:
    """What another program than the image's own prints in it."""
    ran = run.ended(run.start(*arguments, entrypoint=program))
    assert ran.code == 0, ran.output
    return ran.output


def files_of(run: Runner) -> dict[str, Path]:
    return {str(path.relative_to(run.results)): path for path in run.results.rglob("*") if path.is_file()}


def assert_whole(run: Runner) -> None:
    """Whatever has the name of a result can be read, and belongs to the caller."""
    for name, path in files_of(run).items():
        if path.suffix == ".json":
            json.loads(path.read_text())
        assert path.stat().st_uid == int(CALLER.partition(":")[0]) or os.geteuid() != 0, name
        assert not name.endswith(".part"), name


def test_its_labels_name_the_commit(image: Image) -> None:
    labels = image.labels
    assert labels["org.opencontainers.image.revision"] == HEAD
    assert labels["org.opencontainers.image.created"] == git(ROOT, "log", "-1", "--format=%cI", HEAD)
    assert labels["org.opencontainers.image.version"]
    assert labels["org.opencontainers.image.base.name"]
    print(f"{image.attrs['Size'] / 1e9:.2f} GB, base included")


def test_it_has_what_triton_compiles_with_and_no_other_compiler(image_run: Runner) -> None:
    assert image_run.image.attrs["Config"]["User"] == "1000:1000"
    absent = "for program in g++ cc1plus make cmake ninja nvcc; do command -v $program || true; done"
    assert inside(image_run, "sh", "-c", absent) == ""
    # As Triton does for its view of the driver and for every launcher, with its own function and its own cache.
    program = '''
from triton.runtime.build import compile_module_from_src
source = """#include <Python.h>
static struct PyModuleDef made = {PyModuleDef_HEAD_INIT, "made"};
PyMODINIT_FUNC PyInit_made(void) { return PyModule_Create(&made); }"""
module = compile_module_from_src(source, "made")
print(module.__name__, module.__file__)
'''
    assert inside(image_run, "python", "-c", program).startswith("made /cache/triton/")


def test_it_holds_the_commit_and_no_configuration(image_run: Runner) -> None:
    asked = "git rev-parse HEAD; git status --porcelain --untracked-files=no; find .git -name config"
    told = inside(image_run, "sh", "-c", asked)
    assert told.split() == [HEAD]


def test_help_lists_the_commands(fresh_run: Runner) -> None:
    ran = fresh_run("help")
    assert ran.code == 0
    for command in ("compare BASE HEAD", "gate", "history", "asv", "serve", "doctor", "test"):
        assert f"\n  {command}" in ran.output


def test_the_main_job_judges_records_and_publishes(image_run: Runner) -> None:
    """All that comes after shows what this one measured."""
    ran = image_run("--quick", "--processes", "2")
    assert "No GPU in this container" in ran.output
    assert ran.code in (0, 1, 3), "times of a machine like this one may be in doubt"
    assert_whole(image_run)
    record = results.load(results.Run, image_run.results / "latest.json")
    assert record.environment.commit == HEAD
    assert not record.environment.dirty
    assert [path for name, path in files_of(image_run).items() if f"/{record.environment.commit[:8]}" in name]
    assert (image_run.results / "dashboard" / "index.html").exists()
    # The verdict is the exit code, and the same whoever derives it.
    assert image_run("gate", "latest.json", "--quick").code == ran.code
    assert image_run("verify", "/results/latest.json", network_mode="none").code == ran.code


def test_exit_codes_are_those_of_the_command(fresh_run: Runner) -> None:
    for device, code in ((15.0, 0), (2.0, 1)):
        results.save(make_run(steady(device)), fresh_run.results / "made.json")
        assert fresh_run("gate", "made.json", "--workload", NAME).code == code
    results.save(make_run({(NAME, "device_us"): [9.0], (NAME, "call_us"): [4.0]}), fresh_run.results / "made.json")
    assert fresh_run("gate", "made.json", "--workload", NAME).code == 3
    assert fresh_run("gate", "missing.json").code == 2
    assert fresh_run("no-such-command").code == 2


def test_two_commits_are_compared(fresh_run: Runner) -> None:
    ran = fresh_run("compare", "HEAD", "HEAD", *QUICK)
    assert ran.code in (0, 1, 3)
    assert "slowdown" in ran.output
    record = results.load(results.Run, fresh_run.results / "latest.json")
    assert record.base is not None
    assert record.base.commit == record.environment.commit == HEAD


def test_a_commit_that_it_lacks_comes_from_a_repository_mounted_to_it(fresh_run: Runner, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(ROOT, "clone", "--quiet", str(ROOT), str(clone))
    git(clone, "commit", "--quiet", "--allow-empty", "--message", "later")
    later = git(clone, "rev-parse", "HEAD")
    assert fresh_run("compare", "HEAD", later, *QUICK).code == 2
    volumes = [f"{fresh_run.results}:/results", f"{clone}:/repository:ro"]
    assert fresh_run("compare", "HEAD", later, *QUICK, volumes=volumes).code in (0, 1, 3)
    assert results.load(results.Run, fresh_run.results / "latest.json").environment.commit == later


def test_asv_reads_and_adds_to_the_history(image_run: Runner) -> None:
    shown = image_run("asv", "show", "HEAD")
    assert shown.code == 0
    assert "track_relative" in shown.output
    assert image_run("asv", "publish", "--no-pull").code == 0


def test_history_answers(image_run: Runner) -> None:
    ran = image_run("history")
    if "invalid choice: 'history'" in ran.output:
        pytest.skip("`python -m benchmarks history` is not there yet")
    assert ran.code in (0, 1, 3)


def test_doctor_tells_what_the_machine_is(fresh_run: Runner) -> None:
    ran = fresh_run("doctor")
    assert "no CUDA device" in ran.output
    assert ran.code == (0 if "Fit to measure on." in ran.output else 2)


def test_the_dashboard_is_served_until_told_to_stop(image_run: Runner) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with timed("IMAGE serve, fetched and stopped"):
        container = image_run.start("serve", "--port", str(port), network_mode="host")
        try:
            page = fetched(f"http://127.0.0.1:{port}/")
            assert page == (image_run.results / "dashboard" / "index.html").read_bytes()
            began = time.monotonic()
            container.stop(timeout=30)
            assert time.monotonic() - began < 20, "it did not listen"
        finally:
            image_run.ended(container)


def fetched(url: str) -> bytes:
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return bytes(answer.read())
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > until:
                raise
            time.sleep(0.3)


def test_a_dashboard_that_is_not_there_is_not_served(fresh_run: Runner) -> None:
    ran = fresh_run("serve")
    assert ran.code == 2
    assert "no dashboard yet" in ran.output
    assert fresh_run("serve", "8000").code == 2


def test_its_tests_run_in_it(fresh_run: Runner) -> None:
    ran = fresh_run("test", "tests/test_stats.py", "tests/test_cpu.py", "tests/test_packaging.py", "-q")
    assert ran.code == 0
    assert " passed" in ran.output
    assert fresh_run("test", "tests/no_such_file.py").code == 4, "pytest's own code"


def test_a_folder_that_it_cannot_write_to_is_refused_before_anything_is_measured(fresh_run: Runner) -> None:
    ran = fresh_run("--quick", user="1234:1234")
    assert ran.code == 2
    assert "cannot write to it" in ran.output
    assert "--user" in ran.output
    assert files_of(fresh_run) == {}
    ran = fresh_run("--quick", tmpfs={})
    assert ran.code == 2
    assert "--tmpfs /tmp" in ran.output


def test_without_a_user_named_it_is_nobody_in_particular(fresh_run: Runner) -> None:
    """And with a root that can be written to, and a folder that anybody may write to."""
    fresh_run.results.chmod(0o777)
    ran = fresh_run("run", *QUICK, user=None, read_only=False, tmpfs={})
    assert ran.code == 0
    assert (fresh_run.results / "latest.json").stat().st_uid == 1000


@pytest.mark.parametrize(("how", "code"), [("stop", 130), ("kill", 137)])
def test_stopped_half_way_it_leaves_nothing_half_written(fresh_run: Runner, how: str, code: int) -> None:
    container = fresh_run.start("--quick")
    with timed(f"IMAGE --quick, {how} while it measures"):
        until = time.monotonic() + 120
        while "measure/worker.py" not in str(container.top(ps_args="-eo pid,args")):
            assert time.monotonic() < until, container.logs().decode()
            time.sleep(0.5)
        time.sleep(10)
        began = time.monotonic()
        container.stop(timeout=60) if how == "stop" else container.kill()
        ran = fresh_run.ended(container)
        assert time.monotonic() - began < 30
    assert ran.code == code
    assert_whole(fresh_run)
    assert "dashboard" not in os.listdir(fresh_run.results)


@pytest.fixture(scope="session")
def changed(build: Callable[[Path, str], Image], image: Image, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image of a later commit, that changes the package alone."""
    clone = tmp_path_factory.mktemp("changed") / "clone"
    git(ROOT, "clone", "--quiet", str(ROOT), str(clone))
    module = clone / "dllm_kernels" / "__init__.py"
    module.write_text(module.read_text() + "\n# changed\n")
    git(clone, "commit", "--quiet", "--all", "--message", "change the package")
    with timed("make image, when only the package changed"):
        return build(clone, "dllm-kernels:changed")


def test_a_change_of_the_package_keeps_the_dependencies(image: Image, changed: Image) -> None:
    before, after = (one.attrs["RootFS"]["Layers"] for one in (image, changed))
    assert before[:-2] == after[:-2], "all but the checkout and what is made of it"
    assert before[-2] != after[-2]
    assert revision(image) != revision(changed)


def revision(image: Image) -> str:
    return str(image.labels["org.opencontainers.image.revision"])


def test_two_at_once_on_one_folder_lose_nothing(client: docker.DockerClient, changed: Image, fresh_run: Runner) -> None:
    """Of two commits: each is in the history afterwards, each record is whole, and the dashboard is one of the two."""
    runners = [fresh_run, Runner(client, changed, fresh_run.results)]
    with timed("IMAGE --workload, two at once"):
        both = [run.start(*QUICK, "--output", f"{number}.json") for number, run in enumerate(runners)]
        codes = [fresh_run.ended(container).code for container in both]
    assert set(codes) <= {0, 1, 3}
    assert_whole(fresh_run)
    for number, run in enumerate(runners):
        record = results.load(results.Run, fresh_run.results / f"{number}.json")
        assert record.environment.commit == revision(run.image)
        assert [name for name in files_of(fresh_run) if f"/{revision(run.image)[:8]}" in name]
    assert (fresh_run.results / "dashboard" / "asv" / "index.html").exists()

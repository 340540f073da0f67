"""The asv environment `shared`: the interpreter's packages, and of the project only the commit's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from asv import environment
from asv.config import Config

from benchmarks import _asv_env

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> environment.Environment:
    conf = Config.load(str(ROOT / "asv.conf.json"))
    conf.env_dir = str(tmp_path_factory.mktemp("env"))
    one = environment.get_environment_class(conf, "3")(conf, "3", {}, {})
    assert isinstance(one, _asv_env.Shared), "asv.conf.json names the environment type that the plug-in provides"
    one.create()
    return one


def in_environment(shared: environment.Environment, program: str, **options: object) -> str:
    return str(shared.run_executable("python", ["-c", program], **options)).strip()


def test_it_is_made_by_the_running_interpreter(shared: environment.Environment) -> None:
    version = in_environment(shared, "import sys; print(*sys.version_info[:3])")
    assert version.split() == [str(part) for part in sys.version_info[:3]]
    assert in_environment(shared, "import sys; print(sys.prefix)") == shared._path


def test_it_sees_the_same_torch(shared: environment.Environment) -> None:
    program = "import importlib.util; print(importlib.util.find_spec('torch').origin)"
    here = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert in_environment(shared, program) == here


def test_the_working_tree_does_not_leak_in(shared: environment.Environment, tmp_path: Path) -> None:
    program = "import importlib.util; print(importlib.util.find_spec('dllm_kernels'))"
    assert in_environment(shared, program, cwd=str(tmp_path)) == "None"


def test_its_name_holds_no_version_that_would_split_the_series(shared: environment.Environment) -> None:
    assert shared.name == "shared-py3"

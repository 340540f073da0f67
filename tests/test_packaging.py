"""The wheel: what is in it, and that it installs and imports alone, without Triton; and how the README begins."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (path,) = folder.glob("*.whl")
    return path


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "dllm_kernels").rglob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == {*package, "dllm_kernels/py.typed"}


def test_its_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = archive.read(name).decode().partition("\n\n")[0].splitlines()
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
    assert "Requires-Python: >=3.10" in fields
    # CUDA builds of PyTorch require the one Triton that fits them: a bound of ours could only clash with it.
    requirements = [field for field in fields if field.startswith("Requires-Dist:") and "extra ==" not in field]
    assert requirements == ["Requires-Dist: torch>=2.10"]


@pytest.mark.parametrize("engine", ["sglang", "diffusers"])
def test_an_extra_asks_for_the_versions_tested(wheel: Path, engine: str) -> None:
    """They are in the module, which does not import without its engine."""
    (tested,) = re.findall(r"^TESTED = (.*)$", (ROOT / f"dllm_kernels/integrations/{engine}.py").read_text(), re.M)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        (wanted,) = re.findall(
            rf"^Requires-Dist: {engine}(\S+); extra == '{engine}'$", archive.read(name).decode(), re.M
        )
    versions = ast.literal_eval(tested)
    assert list(SpecifierSet(wanted).filter(versions)) == list(versions)
    major, minor, patch = versions[-1].split(".")
    for other in (f"{major}.{minor}.{int(patch) + 1}", f"{versions[-1]}.post1"):  # which the module refuses
        assert other not in SpecifierSet(wanted)


def test_sglang_is_told_where_the_plug_in_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        entry_points = archive.read(name).decode()
    assert "[sglang.srt.plugins]\ndllm_kernels = dllm_kernels.integrations.sglang:register" in entry_points


def test_it_installs_alone_and_works_without_triton(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--no-deps", "--target", str(tmp_path), str(wheel))
    program = f"""
import sys
sys.modules["triton"] = None  # its import fails, as if it were not installed
sys.path.insert(0, {str(tmp_path)!r})
import torch
import dllm_kernels
assert dllm_kernels.__file__.startswith({str(tmp_path)!r}), dllm_kernels.__file__
ids = torch.tensor([7, 1])
dllm_kernels.dllm_post_process_fused(torch.tensor([[0.0, 9.0], [0.0, 0.0]]), ids, 7, 0.5)
assert ids.tolist() == [1, 1], ids
try:
    dllm_kernels.dllm_post_process_fused(torch.zeros(1, 2), ids[:1], 7, 0.5, backend="triton")
except RuntimeError as error:
    assert "triton" in str(error).lower(), error
else:
    raise AssertionError("the triton backend ran without Triton")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_first_example_of_the_readme_runs_with_and_without_a_gpu() -> None:
    example = re.search("```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    names: dict[str, Any] = {}
    exec(example[1], names)
    accepted = (names["input_ids"] != names["mask_id"]).sum(dim=1)
    assert accepted.tolist() == [1, 1, 1, 1]  # of noise, no token is sure, and each block takes its best

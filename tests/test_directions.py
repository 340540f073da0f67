"""Which module may import which: the package's parts stay apart, and what judges never measures."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dllm_kernels

ROOT = Path(__file__).parent.parent
BACKENDS = {"reference", "cpu", "gpu"}
ENGINES = {"sglang", "diffusers"}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Full names of what `path` imports, of modules and of names in them; those under TYPE_CHECKING left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import, which this test does not resolve"
            found.add(str(node.module))
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def files(name: str) -> list[Path]:
    """Of a module, or of all in a folder."""
    path = ROOT / Path(*name.split("."))
    return sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def test_it_sees_every_form_of_import(tmp_path: Path) -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    import e\nif TYPE_CHECKING:\n    import g\n"
    (tmp_path / "m.py").write_text(source)
    assert imports(tmp_path / "m.py") == {"a.b", "c", "c.d", "e"}
    assert imports(tmp_path / "m.py", top_level_only=True) == {"a.b", "c", "c.d"}


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_backends_do_not_know_each_other(backend: str) -> None:
    others = {f"dllm_kernels.{other}" for other in BACKENDS - {backend}}
    for path in files(f"dllm_kernels.{backend}"):
        assert not imports(path) & others, path


def test_the_triton_backend_is_imported_lazily() -> None:
    (path,) = files("dllm_kernels.post_process")
    assert "dllm_kernels.gpu" in imports(path)
    assert "dllm_kernels.gpu" not in imports(path, top_level_only=True)


def test_the_package_does_not_know_its_benchmarks_and_tests() -> None:
    for path in (ROOT / "dllm_kernels").rglob("*.py"):
        roots = {name.partition(".")[0] for name in imports(path)}
        assert not roots & {"benchmarks", "tests"}, path


def test_nothing_imports_the_integrations() -> None:
    for path in [*(ROOT / "dllm_kernels").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        if path.parent.name != "integrations":
            assert not any(name.startswith("dllm_kernels.integrations") for name in imports(path)), path


def test_integrations_use_the_public_api_and_their_own_engine() -> None:
    public = {"dllm_kernels", *(f"dllm_kernels.{name}" for name in dllm_kernels.__all__)}
    shared = {f"dllm_kernels.integrations.{name}" for name in ("require", "row_statistics", "unmask")}
    for path in files("dllm_kernels.integrations"):
        ours = {name for name in imports(path) if name.partition(".")[0] == "dllm_kernels"}
        if path.stem == "__init__":
            assert ours <= public, path
        else:
            assert ours <= public | shared | {"dllm_kernels.integrations"}, path
        assert {name.partition(".")[0] for name in imports(path)} & ENGINES <= {path.stem}, path


def test_no_engine_outside_its_integration() -> None:
    for path in (ROOT / "dllm_kernels").rglob("*.py"):
        if path.parent.name != "integrations":
            assert not {name.partition(".")[0] for name in imports(path)} & ENGINES, path


def test_measuring_does_not_judge() -> None:
    for path in (ROOT / "benchmarks" / "measure").glob("*.py"):
        assert not imports(path) & {"benchmarks.gate", "benchmarks.policy", "benchmarks.report"}, path


@pytest.mark.parametrize("name", ["gate", "noise", "policy", "report"])
def test_judging_neither_measures_nor_loads_torch(name: str) -> None:
    program = f"import benchmarks.{name}, sys; print([m for m in ('torch', 'benchmarks.measure') if m in sys.modules])"
    assert run_python(program) == "[]"
    (path,) = files(f"benchmarks.{name}")
    assert "benchmarks.measure" not in imports(path)
    assert "torch" not in {name.partition(".")[0] for name in imports(path)}


def test_the_dashboard_loads_no_torch() -> None:
    assert run_python("import benchmarks.site.command, sys; print('torch' in sys.modules)") == "False"


# The slots' kernel, which is compiled for review, and of no commit but today's.
FOR_REVIEW = ("dllm_kernels.decode.slots", "dllm_kernels.gpu.advance")


def test_benchmarks_use_the_public_api_alone() -> None:
    for path in (ROOT / "benchmarks").rglob("*.py"):
        everywhere, at_once = imports(path), imports(path, top_level_only=True)
        asked = at_once | {name for name in everywhere if not name.startswith(FOR_REVIEW)}
        private = {name for name in asked if name.startswith("dllm_kernels.") and name.count(".") > 1}
        assert not private, f"{path.name}: asv runs it against old commits, which need not have {private}"


def test_discovery_by_asv_finds_the_suite_alone() -> None:
    """asv imports every module of the folder and takes any public name of its patterns, imported helpers too."""
    program = """
import importlib, pkgutil, re, sys, benchmarks
pattern = re.compile("(time|timeraw|track|peakmem|mem)_|(Time|Track|PeakMem|Mem)[A-Z]")
for module in pkgutil.iter_modules(benchmarks.__path__, "benchmarks."):
    if not module.name.endswith("__main__"):
        for name, one in vars(importlib.import_module(module.name)).items():
            members = [name] if not isinstance(one, type) else [f"{name}.{member}" for member in dir(one)]
            if not name.startswith("_"):
                print(*(f"{module.name}.{member}" for member in members if pattern.match(member.split(".")[-1])))
print("torch" in sys.modules, "triton" in sys.modules)
"""
    *names, loaded = run_python(program).splitlines()
    found = {name for line in names for name in line.split()}
    times = ("track_fused_us", "track_reference_us", "track_relative", "track_speedup")
    suite = {"Quick": times, "Others": times, "Compiled": ("track_registers", "track_instructions")}
    suite |= dict.fromkeys(("QuickOnDevice", "OthersOnDevice"), ("track_bandwidth_share", "track_peak_bytes"))
    assert found == {f"benchmarks.bench_post_process.{name}.{one}" for name, every in suite.items() for one in every}
    assert loaded == "False False", "asv starts a process for every series and parameter: PyTorch would slow each"


def test_importing_the_package_loads_no_triton_and_no_engine() -> None:
    names = ("triton", "dllm_kernels.integrations", *sorted(ENGINES))
    program = f"import dllm_kernels, sys; print([m for m in {names} if m in sys.modules])"
    assert run_python(program) == "[]"


def run_python(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

"""A measuring process, started by path: `python worker.py [PACKAGE_FOLDER]`, commands and replies as JSON lines.

It finds `benchmarks` by its own place and leaves the checkout off the import path, so that `dllm_kernels` is the one in
PACKAGE_FOLDER, or else the installed one. What libraries print goes to standard error. It ends with its standard input,
so none is left behind when the conductor dies.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    here = Path(__file__).resolve().parent
    package_folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
    # Python puts the script's folder first.
    sys.path = [entry for entry in sys.path if entry and Path(entry).resolve() not in (here, here.parent)]
    if package_folder:
        sys.path.insert(0, str(package_folder))
    _load_benchmarks(here.parent)

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from benchmarks.measure.bench import Bench, start

    environment = start(package_folder)
    print(json.dumps(environment), file=replies, flush=True)
    bench: Bench | None = None
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        do = command.pop("do")
        if do == "open":
            bench = Bench(**command)
            reply: Any = bench.check()
        else:
            assert bench is not None, "a command before 'open'"
            reply = getattr(bench, do)(**command)
        print(json.dumps(reply), file=replies, flush=True)


def _load_benchmarks(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    main()

"""A measuring process, started by path: `python worker.py TASK`, events as JSON lines on standard output.

It finds `benchmarks` by its own place and leaves the checkout off the import path, so that `dllm_kernels` is the
installed one. What libraries print goes to standard error.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path


def main() -> None:
    here = Path(__file__).parent
    sys.path = [entry for entry in sys.path if entry and Path(entry).resolve() != here.resolve()]
    spec = importlib.util.spec_from_file_location(
        "benchmarks", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = package
    spec.loader.exec_module(package)

    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def emit(event: dict[str, object]) -> None:
        print(json.dumps(event), file=events, flush=True)

    from benchmarks import measure

    measure.run_worker(json.loads(sys.argv[1]), emit)


if __name__ == "__main__":
    main()

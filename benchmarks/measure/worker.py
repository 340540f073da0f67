"""Measuring processes, started by path: `python worker.py SOCKET`, which `nursery` does.

The parent imports PyTorch, says on its socket which GPU there is, and forks a worker for every request that comes with
a socket, a file, and a lock that it holds. Commands and replies are JSON lines on that socket; what the worker prints
goes to the file. It finds `benchmarks` by its own place and leaves the checkout off the import path, so that
`dllm_kernels` is the one in the requested folder, or else the installed one. All end with their sockets: none outlives
the conductor by more than the command that it is at.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
import uuid
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main() -> None:
    # Python puts the script's folder first.
    sys.path = [entry for entry in sys.path if entry and Path(entry).resolve() not in (HERE, HERE.parent)]
    requests = socket.socket(fileno=int(sys.argv[1]))
    _import_what_is_slow()
    try:
        requests.sendall(json.dumps(_in_a_child(_gpu)).encode() + b"\n")
    except BrokenPipeError:  # the conductor was killed meanwhile
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, 65536, 3)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            connection, errors, _lock = descriptors
            _serve(connection, errors, json.loads(request)["package_folder"])
        for descriptor in descriptors:
            os.close(descriptor)


def _import_what_is_slow() -> None:
    import torch

    if torch.version.cuda:
        import torch._dynamo  # what makes a model on `meta` does so, as whole sequences do, in 5 s a worker

    if importlib.util.find_spec("triton"):
        import triton  # noqa: F401


def _in_a_child(function: Any) -> Any:
    """What `function` returns in a process of its own: here, CUDA must stay untouched, or no child could use it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writing, "w") as answer:
            json.dump(function(), answer)
            answer.flush()
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    if not text:
        raise RuntimeError("which GPU there is could not be found out")
    return json.loads(text)


def _gpu() -> dict[str, str | None]:
    """UUID and name of the GPU that PyTorch would use, without a context on it, which a run that measures there would
    notice."""
    import torch

    if not torch.cuda.is_available():
        return {"uuid": None, "name": None}
    libcuda, device = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    identifier, name = (ctypes.c_char * 16)(), ctypes.create_string_buffer(256)
    for status in (
        libcuda.cuInit(0),
        libcuda.cuDeviceGet(ctypes.byref(device), 0),
        libcuda.cuDeviceGetUuid(identifier, device),
        libcuda.cuDeviceGetName(name, len(name), device),
    ):
        if status != 0:
            raise RuntimeError(f"the CUDA driver refused a call: CUresult {status}")
    return {"uuid": f"GPU-{uuid.UUID(bytes=bytes(identifier))}", "name": name.value.decode()}


def _serve(connection: int, errors: int, package_folder: str | None) -> None:
    """A worker's life. Never returns: the parent's loop is not a worker's."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    stream = socket.socket(fileno=connection).makefile("rw")
    try:
        _reply(stream, os.getpid())
        _work(stream, Path(package_folder).resolve() if package_folder else None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # which closes the connection: by then, everything is in the file


def _work(stream: Any, package_folder: Path | None) -> None:
    if package_folder:
        sys.path.insert(0, str(package_folder))
    _load_benchmarks(HERE.parent)
    from benchmarks.measure.bench import compile_kernels, open_bench, start

    _reply(stream, start(package_folder))
    bench: Any = None
    for line in stream:
        command: dict[str, Any] = json.loads(line)
        do = command.pop("do")
        if do == "open":
            bench = open_bench(**command)
            _reply(stream, bench.check())
        elif do == "compile":
            compile_kernels(**command)
            _reply(stream, None)
        else:
            assert bench is not None, "a command before 'open'"
            _reply(stream, getattr(bench, do)(**command))


def _reply(stream: Any, reply: Any) -> None:
    stream.write(json.dumps(reply) + "\n")
    stream.flush()


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

"""Which of asv's result files, of any project, can be read: sound ones of commits on the branch; others are told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.history.machine import noted

COLUMNS = {"result", "params", "version", "started_at", "duration", "samples", "profile"}  # and asv's statistics
WANTED: dict[str, Any] = {
    "commit_hash": str,
    "params": dict,
    "results": dict,
    "result_columns": list,
    "date": (int, float),
    "env_name": str,
    "python": str,
    "requirements": dict,
}


@dataclass
class Survey:
    """What a folder of results holds."""

    sound: dict[str, list[Path]] = field(default_factory=dict)  # by asv's environment: another one is another series
    damaged: list[tuple[Path, str]] = field(default_factory=list)  # with the reason
    strays: dict[str, list[str]] = field(default_factory=dict)  # machines by commit that is not on the branch
    machines: list[str] = field(default_factory=list)


def survey(results: Path, commits: Sequence[str]) -> Survey:
    """Look at every file.

    Raises:
        ValueError: `benchmarks.json`, which says what all the others mean, is damaged, missing, or of an older format.
    """
    found, known = Survey(), set(commits)
    if not any(results.glob("*/*.json")):
        return found
    about, fault = _read(results / "benchmarks.json")
    if not fault and about.get("version") != 2:
        fault = f"expected asv's format 2; got {about.get('version')} (`asv update` converts older ones)"
    if fault:
        raise ValueError(f"{results / 'benchmarks.json'}: {fault}; any `asv run` writes it again")
    for folder in sorted({path.parent for path in results.glob("*/*.json")}):
        about, fault = _read(folder / "machine.json")
        if not fault and about.get("machine") != folder.name:
            fault = f"is of {about.get('machine')}, in the folder of {folder.name}"
        if fault:
            found.damaged.append((folder / "machine.json", f"{fault}; nothing of this machine is shown"))
            continue
        found.machines.append(folder.name)
        for path in sorted(folder.glob("*.json")):
            if path.name != "machine.json":
                _sort_in(found, path, known)
    return found


def _sort_in(found: Survey, path: Path, known: set[str]) -> None:
    content, fault = _read(path)
    fault = fault or _fault(content, path.parent.name) or _fault_beside(path)
    if fault:
        found.damaged.append((path, fault))
    elif content["commit_hash"] in known:
        found.sound.setdefault(content["env_name"], []).append(path)
    else:
        found.strays.setdefault(content["commit_hash"], []).append(path.parent.name)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object, or why there is none."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}, "missing"
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        return {}, str(error)
    return (content, "") if isinstance(content, dict) else ({}, "expected a JSON object")


def _fault(content: dict[str, Any], machine: str) -> str:
    """Why results cannot be shown; empty if they can."""
    if content.get("version") != 2:
        return f"expected asv's format 2; got {content.get('version')} (`asv update` converts older ones)"
    for name, kind in WANTED.items():
        if not isinstance(content.get(name), kind):
            return f"expected asv's results; there is no proper {name}"
    if content["params"].get("machine") != machine:
        return f"is of {content['params'].get('machine')}, in the folder of {machine}"
    return next(_faulty_rows(content["result_columns"], content["results"]), "")


def _fault_beside(path: Path) -> str:
    """Of what it was measured with."""
    try:
        noted(path)
    except ValueError as error:
        return str(error)
    return ""


def _faulty_rows(columns: list[Any], rows: dict[str, Any]) -> Iterator[str]:
    """Benchmarks whose values are no numbers, or not as many as their parameters' combinations."""
    if unknown := [one for one in columns if one not in COLUMNS and not str(one).startswith("stats_")]:
        yield f"expected columns that asv knows; got {unknown[0]}"
    for name, row in rows.items():
        if not isinstance(row, list) or len(row) > len(columns):
            yield f"{name}: expected at most {len(columns)} columns"
            continue
        cells = dict(zip(columns, row, strict=False))
        parameters = cells.get("params")
        if not isinstance(parameters, list) or not all(
            isinstance(values, list) and all(isinstance(one, str) for one in values) for values in parameters
        ):
            yield f"{name}: expected lists of parameters, in words"
            continue
        expected = 1
        for values in parameters:
            expected *= len(values)
        for column, values in cells.items():
            counted = column == "result" or column.startswith("stats_")
            if counted and values is not None and (not isinstance(values, list) or len(values) != expected):
                yield f"{name}: expected {expected} values of {column}"
            elif counted and not all(one is None or _is_number(one) for one in values or ()):
                yield f"{name}: expected numbers as {column}"


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)

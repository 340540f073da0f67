"""Which of asv's results, of any project, can be read: sound files of commits on the branch, and of those the rows that
hold what asv writes; others are told."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
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
}
LARGEST = 1e100  # of a value: sums of larger ones overflow, and asv's search for steps in infinite values never ends


@dataclass
class Survey:
    """What a folder of results holds."""

    sound: dict[str, list[Path]] = field(default_factory=dict)  # by asv's environment: another one is another series
    damaged: list[tuple[Path, str]] = field(default_factory=list)  # with the reason
    faulty: list[tuple[Path, str]] = field(default_factory=list)  # benchmarks that are left out of sound files, and why
    outdated: set[str] = field(default_factory=set)  # benchmarks with results of an edited version, or that are no more
    older: list[Path] = field(default_factory=list)  # sound, as far as one can see, in a format that asv reads no more
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
    benchmarks, fault = _read(results / "benchmarks.json")
    if not fault and benchmarks.get("version") != 2:
        fault = f"expected asv's format 2; got {benchmarks.get('version')} (`asv update` converts older ones)"
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
                _sort_in(found, path, known, benchmarks)
    return found


def _sort_in(found: Survey, path: Path, known: set[str], benchmarks: dict[str, Any]) -> None:
    content, fault = _read(path)
    if content.get("version") == 1:
        found.older.append(path)
        return
    fault = fault or fault_of(content, path.parent.name) or _fault_beside(path)
    if fault:
        found.damaged.append((path, fault))
    elif content["commit_hash"] in known:
        found.sound.setdefault(content["env_name"], []).append(path)
        faults = _faults(content)
        found.faulty += [(path, reason) for reason in faults.values()]
        found.outdated |= content["results"].keys() - faults.keys() - current(content, benchmarks).keys()
    else:
        found.strays.setdefault(content["commit_hash"], []).append(path.parent.name)


def sound_content(path: Path) -> tuple[dict[str, Any], bool]:
    """What a sound file holds, without the benchmarks that cannot be read and with no value where one is infinite; and
    whether it is as the file says."""
    content, _ = _read(path)
    faults, column = _faults(content), content["result_columns"].index("result")
    rows = {name: _finite(row, column) for name, row in content["results"].items() if name not in faults}
    sound = {**content, "requirements": content.get("requirements") or {}, "results": rows}
    return sound, sound == content


def current(content: dict[str, Any], benchmarks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By benchmark the cells of each sound row that means what `benchmarks.json` says; the others asv leaves out too,
    for what an edited benchmark measures is no commit's doing."""
    faults, columns = _faults(content), content["result_columns"]
    rows = {
        name: dict(zip(columns, row, strict=False)) for name, row in content["results"].items() if name not in faults
    }
    return {
        name: cells
        for name, cells in rows.items()
        if isinstance(about := benchmarks.get(name), dict) and cells.get("version") in (None, about.get("version"))
    }


def _finite(row: list[Any], column: int) -> list[Any]:
    """asv's NaN stays: it is of a parameter that was not asked for."""
    values = [None if one is not None and abs(one) > LARGEST else one for one in row[column] or ()]
    return [*row[:column], values, *row[column + 1 :]] if values != row[column] and row[column] is not None else row


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object, or why there is none."""
    try:
        return parsed(path.read_bytes())
    except FileNotFoundError:
        return {}, "missing"
    except OSError as error:
        return {}, str(error)


def parsed(text: bytes) -> tuple[dict[str, Any], str]:
    """A JSON object, or why there is none."""
    try:
        content = json.loads(text)
    except RecursionError:
        return {}, "nested too deeply"
    except ValueError as error:  # no JSON, or not even text
        return {}, str(error)
    return (content, "") if isinstance(content, dict) else ({}, "expected a JSON object")


def fault_of(content: dict[str, Any], machine: str) -> str:
    """Why results cannot be shown; empty if they can."""
    if content.get("version") != 2:
        return f"expected asv's format 2; got {content.get('version')}"
    for name, kind in WANTED.items():
        if not isinstance(content.get(name), kind):
            return f"expected asv's results; there is no proper {name}"
    if not isinstance(content.get("requirements") or {}, dict):
        return "expected asv's results; there are no proper requirements"
    if content["params"].get("machine") != machine:
        return f"is of {content['params'].get('machine')}, in the folder of {machine}"
    columns = content["result_columns"]
    if unknown := [one for one in columns if one not in COLUMNS and not str(one).startswith("stats_")]:
        return f"expected columns that asv knows; got {unknown[0]}"
    if missing := {"result", "params"}.difference(columns):
        return f"expected asv's columns; there is no {min(missing)}"
    return ""


def _fault_beside(path: Path) -> str:
    """Of what it was measured with."""
    try:
        noted(path)
    except ValueError as error:
        return str(error)
    return ""


def _faults(content: dict[str, Any]) -> dict[str, str]:
    """By benchmark, why what is said of it cannot be read."""
    told = {name: _fault_of_row(row, content["result_columns"]) for name, row in content["results"].items()}
    return {name: f"{name}: {fault}" for name, fault in told.items() if fault}


def _fault_of_row(row: Any, columns: list[str]) -> str:
    """Values that are no numbers, or not as many as the parameters' combinations; empty if they are."""
    if not isinstance(row, list) or len(row) > len(columns):
        return f"expected at most {len(columns)} columns"
    cells = dict(zip(columns, row, strict=False))
    if "result" not in cells:
        return "expected a result"
    parameters = cells.get("params")
    if not isinstance(parameters, list) or not all(
        isinstance(values, list) and all(isinstance(one, str) for one in values) for values in parameters
    ):
        return "expected lists of parameters, in words"
    expected = math.prod(len(values) for values in parameters)
    for column, values in cells.items():
        if values is None or (column != "result" and not column.startswith("stats_")):
            continue
        if not isinstance(values, list) or len(values) != expected:
            return f"expected {expected} values of {column}"
        if not all(one is None or _is_number(one) for one in values):
            return f"expected numbers as {column}"
    return ""


def _is_number(value: object) -> bool:
    """JSON's true and false are integers to Python, and an integer may be longer than any float can hold."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float)

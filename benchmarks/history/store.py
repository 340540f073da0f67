"""Where history lives: a branch of results alone, which every runner appends to (`python -m benchmarks results`).

Files are added or replaced on top of whatever the branch holds, never removed and never by force; where another runner
was faster, once more on top of its commit, and where it measured the same commit, what both found is kept. A ref
remembers what was fetched or pushed last, so that only what was measured here since is pushed, and no older copy of
another runner's file. Checkout and index stay untouched.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks import whole
from benchmarks.history.survey import fault_of, parsed

BRANCH = "benchmark-results"
# The commits that the results here were last fetched from or pushed as; git keeps such refs for each worktree alone.
SYNCED = "refs/worktree/synced-results"
BENCHMARKS = "benchmarks.json"
AND = " and "  # between the versions of two runners
TRIES = 10  # against other runners
NOBODY = {
    f"GIT_{role}_{what}": text
    for role in ("AUTHOR", "COMMITTER")
    for what, text in (("NAME", "benchmarks"), ("EMAIL", "benchmarks@localhost"))
}


class Store:
    """The results in a folder, and their branch on a remote of a repository."""

    def __init__(self, repository: Path, results: Path, remote: str, branch: str = BRANCH) -> None:
        self.repository = repository
        self.results = results.resolve()
        self.remote = remote
        self.branch = branch
        of = hashlib.sha256(f"{remote} {branch}".encode()).hexdigest()[:8]
        self.synced = f"{SYNCED}/{of}"

    def push(self) -> str | None:
        """Append what was measured here since; the branch's new commit, or None where there was nothing new.

        Raises:
            ValueError: a file here is damaged; nothing was pushed.
            RuntimeError: git failed, or other runners were faster too often.
        """
        for attempt in range(TRIES):
            tip = self._tip()
            changed = self._changed_here(tip)
            if not changed:
                return None
            for name in changed:
                _expect_sound(self.results, name)
            self._merge(changed, tip)
            tree = self._tree_with(changed, tip)
            if tip and tree == self._git("rev-parse", f"{tip}^{{tree}}"):
                self._git("update-ref", self.synced, tip)
                return None
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            commit = self._commit(tree, tip, f"Results: {', '.join(changed[:5])}{more}")
            pushed = self._run("push", "--quiet", self.remote, f"{commit}:refs/heads/{self.branch}")
            if pushed.returncode == 0:
                self._git("update-ref", self.synced, commit)
                return commit
            if self._tip() == tip and "lock" not in pushed.stderr:
                raise RuntimeError(f"{self.remote} took no results: {pushed.stderr.strip()}")
            time.sleep(random.uniform(0, 0.1 * 2**attempt))
        raise RuntimeError(f"{self.remote} took no results: other runners were faster {TRIES} times; push again")

    def fetch(self) -> int:
        """Bring here what others appended; how many files. What was measured here since the last time stays, and where
        others measured the same commit, what they found is added to it.

        Raises:
            RuntimeError: git failed.
        """
        tip = self._tip()
        if tip is None:
            return 0
        self._merge(self._changed_here(tip), tip)
        synced, here = self._synced_below(tip), self._blobs_here()
        fetched = 0
        for name, blob in self._blobs(tip).items():
            if here.get(name) in (None, synced.get(name)) and here.get(name) != blob:
                _write(self.results / name, self._content(blob))
                fetched += 1
        self._git("update-ref", self.synced, tip)
        return fetched

    def _changed_here(self, tip: str | None) -> list[str]:
        synced = self._synced_below(tip)
        return [name for name, blob in self._blobs_here().items() if synced.get(name) != blob]

    def _merge(self, changed: Sequence[str], tip: str | None) -> None:
        """Into the files of here what others pushed of the same commits meanwhile."""
        synced, theirs = self._synced_below(tip), self._blobs(tip)
        for name in changed:
            blob = theirs.get(name)
            # asv writes the list of benchmarks anew, by what is checked out: what that lacks others may still have.
            if blob is None or (blob == synced.get(name) and name != BENCHMARKS) or name.endswith("/machine.json"):
                continue
            (ours, _), (other, fault) = (
                _read(name, (self.results / name).read_bytes()),
                _read(name, self._content(blob)),
            )
            if not ours or fault:
                continue
            if name == BENCHMARKS:
                here = [_read(one, (self.results / one).read_bytes()) for one in changed if _is_of_a_commit(one)]
                of_commits = {path: one for path, one in theirs.items() if _is_of_a_commit(path)}
                there = [_read(*one) for one in zip(of_commits, self._contents(of_commits.values()), strict=True)]
                both = merged_benchmarks(ours, other, _newest(here), _newest(there))
            else:
                both = merged(ours, other) if name.endswith(".json") else merged_versions(ours, other)
            _write(self.results / name, json.dumps(both).encode())

    def _content(self, blob: str) -> bytes:
        command = ["git", "cat-file", "blob", blob]
        return subprocess.run(command, cwd=self.repository, capture_output=True, check=True).stdout

    def _contents(self, blobs: Iterable[str]) -> Iterator[bytes]:
        command = ["git", "cat-file", "--batch"]
        asked = "".join(f"{blob}\n" for blob in blobs).encode()
        told = subprocess.run(command, cwd=self.repository, input=asked, capture_output=True, check=True).stdout
        while told:
            about, _, told = told.partition(b"\n")
            size = int(about.split()[2])
            yield told[:size]
            told = told[size + 1 :]

    def _files(self) -> list[Path]:
        kinds = (".json", ".environment")
        return sorted(path for path in self.results.rglob("*") if path.suffix in kinds and path.is_file())

    def _blobs_here(self) -> dict[str, str]:
        names = [path.relative_to(self.results).as_posix() for path in self._files()]
        if not names:
            return {}
        hashes = self._git("hash-object", "--stdin-paths", "--no-filters", input="\n".join(map(str, self._files())))
        return dict(zip(names, hashes.split("\n"), strict=True))

    def _blobs(self, commit: str | None) -> dict[str, str]:
        if commit is None:
            return {}
        lines = self._git("ls-tree", "-r", "-z", commit).split("\0")
        entries = [line.split("\t", 1) for line in lines if line]
        return {name: about.split()[2] for about, name in entries if about.startswith("100644 blob")}

    def _tree_with(self, changed: list[str], tip: str | None) -> str:
        """The tip's files and the changed ones of here."""
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
            if tip:
                self._git("read-tree", tip, environment=index)
            blobs = self._git(
                "hash-object", "-w", "--stdin-paths", "--no-filters",
                input="\n".join(str(self.results / name) for name in changed),
            ).split("\n")  # fmt: skip
            entries = "".join(f"100644 {blob}\t{name}\0" for name, blob in zip(changed, blobs, strict=False))
            self._git("update-index", "-z", "--index-info", input=entries, environment=index)
            return self._git("write-tree", environment=index)

    def _commit(self, tree: str, parent: str | None, message: str) -> str:
        parents = ["-p", parent] if parent else []
        known = self._run("var", "GIT_COMMITTER_IDENT").returncode == 0
        return self._git("commit-tree", tree, *parents, "-m", message, environment={} if known else NOBODY)

    def _tip(self) -> str | None:
        """Of the remote's branch, fetched; None where there is no such branch."""
        listed = self._git("ls-remote", self.remote, f"refs/heads/{self.branch}")
        if not listed:
            return None
        self._git("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", self.remote, f"refs/heads/{self.branch}")
        return listed.split()[0]

    def _synced_below(self, tip: str | None) -> dict[str, str]:
        """What was fetched or pushed last; nothing where the branch was deleted or rewound, and may lack it."""
        if tip is None or self._run("merge-base", "--is-ancestor", self.synced, tip).returncode != 0:
            return {}
        return self._blobs(self.synced)

    def _run(
        self, *arguments: str, input: str | None = None, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments], cwd=self.repository, input=input, capture_output=True, text=True, check=False,
            env={**os.environ, **(environment or {}), "LC_ALL": "C"},
        )  # fmt: skip

    def _git(self, *arguments: str, input: str | None = None, environment: dict[str, str] | None = None) -> str:
        done = self._run(*arguments, input=input, environment=environment)
        if done.returncode != 0:
            raise RuntimeError(f"git {' '.join(arguments[:3])} failed: {done.stderr.strip()}")
        return done.stdout.removesuffix("\n")


def _write(path: Path, content: bytes) -> None:
    with whole.file(path) as part:
        part.write_bytes(content)


def _read(name: str, text: bytes) -> tuple[dict[str, Any], str]:
    """What a file of the results holds, or why that counts for nothing: a run that was killed while asv wrote leaves
    half of one."""
    content, fault = parsed(text)
    if not fault and _is_of_a_commit(name):
        fault = fault_of(content, PurePosixPath(name).parent.name)
    return ({}, fault) if fault else (content, "")


def _expect_sound(results: Path, name: str) -> dict[str, Any]:
    """What it holds.

    Raises:
        ValueError: it is damaged.
    """
    content, fault = _read(name, (results / name).read_bytes())
    if fault:
        raise ValueError(f"{results / name}: damaged, {fault}; delete it, or measure that commit again")
    return content


def _is_of_a_commit(name: str) -> bool:
    return PurePosixPath(name).suffix == ".json" and PurePosixPath(name).name not in ("machine.json", BENCHMARKS)


def merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """asv's results of one commit from two runners: of every benchmark the later, filled in where only the other was
    asked for that parameter.

    asv keeps a benchmark's columns in a list, shorter where the last ones are empty; a parameter that was not asked
    for has the value NaN.
    """
    columns = list(dict.fromkeys([*theirs.get("result_columns", ()), *ours.get("result_columns", ())]))
    both = _cells(theirs)
    for name, row in _cells(ours).items():
        other = both.get(name)
        if other is None:
            both[name] = row
        elif (row.get("started_at") or 0) >= (other.get("started_at") or 0):
            both[name] = _filled(row, other)
        else:
            both[name] = _filled(other, row)
    return {**ours, "result_columns": columns, "results": {name: _row(cells, columns) for name, cells in both.items()}}


def _cells(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of every benchmark, by column; nothing of what others damaged."""
    columns, rows = content.get("result_columns", ()), content.get("results", {})
    return {name: dict(zip(columns, row, strict=False)) for name, row in rows.items() if isinstance(row, list)}


def _row(cells: dict[str, Any], columns: Sequence[str]) -> list[Any]:
    known = max((number for number, column in enumerate(columns, 1) if cells.get(column) is not None), default=0)
    return [cells.get(column) for column in columns[:known]]


def _filled(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`row` with the values that it has no number for and `other` has."""
    mine, its = row.get("result"), other.get("result")
    same = all(row.get(name) == other.get(name) for name in ("params", "version"))
    if not same or not isinstance(mine, list) or not isinstance(its, list):
        return row
    missing = [
        i for i, (one, another) in enumerate(zip(mine, its, strict=True)) if _is_nan(one) and not _is_nan(another)
    ]
    filled = dict(row)
    for name, values in other.items():
        if missing and values is not None and (name in ("result", "samples") or name.startswith("stats_")):
            filled[name] = list(row.get(name) or [None] * len(mine))
            for i in missing:
                filled[name][i] = values[i]
    return filled


def merged_benchmarks(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    here: dict[tuple[str, str], int],
    there: dict[tuple[str, str], int],
) -> dict[str, Any]:
    """asv's lists of benchmarks from two checkouts: all of both, and of one that was edited the version that the newer
    commit was measured with; by benchmark and version, `here` and `there` tell the newest commit's date."""

    def newer(name: str) -> Any:
        if name not in ours or name not in theirs or not isinstance(ours[name], dict):
            return ours.get(name, theirs.get(name))
        mine, its = (here.get((name, ours[name]["version"]), 0), there.get((name, theirs[name]["version"]), 0))
        return ours[name] if mine >= its else theirs[name]

    return {name: newer(name) for name in [*theirs, *(name for name in ours if name not in theirs)]}


def _newest(results: Iterable[tuple[dict[str, Any], str]]) -> dict[tuple[str, str], int]:
    """By benchmark and version, the date of the newest commit that has results of them."""
    found: dict[tuple[str, str], int] = {}
    for content, _ in results:
        for name, row in _cells(content).items():
            key = (name, str(row.get("version")))
            found[key] = max(found.get(key, 0), content.get("date", 0))
    return found


def merged_versions(ours: dict[str, str], theirs: dict[str, str]) -> dict[str, str]:
    """What two runners measured one commit with: both versions, where they had different ones."""
    both = dict(theirs)
    for name, version in ours.items():
        every = {*version.split(AND), *both.get(name, version).split(AND)}
        both[name] = AND.join(sorted(every))
    return both


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def thin(results: Path, older_than_days: int, today: datetime.date) -> int:
    """Drop the raw samples of commits older than that; medians, intervals and quartiles stay. How many files.

    Raises:
        ValueError: a file is damaged; those before it are thinned.
    """
    limit = datetime.datetime.combine(today, datetime.time(), datetime.timezone.utc)
    limit -= datetime.timedelta(days=older_than_days)
    thinned = 0
    for path in sorted(results.glob("*/*.json")):
        name = path.relative_to(results).as_posix()
        if not _is_of_a_commit(name):
            continue
        content = _expect_sound(results, name)
        if content["date"] / 1e3 < limit.timestamp() and _without_samples(content):
            _write(path, json.dumps(content, separators=(",", ":")).encode())
            thinned += 1
    return thinned


def _without_samples(content: dict[str, Any]) -> bool:
    """Drop them; whether there were any."""
    columns, any_samples = content["result_columns"], False
    for name, cells in _cells(content).items():
        any_samples |= cells.pop("samples", None) is not None
        content["results"][name] = _row(cells, columns)
    return any_samples


def add_command(commands: Any, repository: Path, results: Path) -> None:
    """Add `results` to the subcommands of a parser."""
    parser = commands.add_parser("results", help="share the history: push it, fetch it, thin it")
    actions = parser.add_subparsers(required=True, metavar="push | fetch | thin")
    for name, text in (
        ("push", "append what was measured here to the branch of results"),
        ("fetch", "bring here what others appended"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("--remote", default="origin", help="a remote's name, URL or path (default origin)")
        action.add_argument("--branch", default=BRANCH, help=f"(default {BRANCH})")
    actions.choices["push"].set_defaults(command=lambda options: _push(_store(options, repository, results)))
    actions.choices["fetch"].set_defaults(command=lambda options: _fetch(_store(options, repository, results)))
    thinning = actions.add_parser("thin", help="drop raw samples of old commits, keep what follows from them")
    thinning.add_argument("--older-than", type=int, default=180, metavar="DAYS", help="(default 180)")
    thinning.set_defaults(command=lambda options: _thin(options, results))


def _store(options: argparse.Namespace, repository: Path, results: Path) -> Store:
    return Store(repository, results, options.remote, options.branch)


def _push(store: Store) -> int:
    commit = store.push()
    print(f"Pushed to {store.branch} as {commit[:10]}." if commit else f"{store.branch} holds everything already.")
    return 0


def _fetch(store: Store) -> int:
    print(f"Fetched {store.fetch()} files of {store.branch} into {store.results}.")
    return 0


def _thin(options: argparse.Namespace, results: Path) -> int:
    today = datetime.datetime.now(datetime.timezone.utc).date()
    print(f"Dropped the samples of {thin(results, options.older_than, today)} results; push to share that.")
    return 0

"""Where history lives: a branch of results alone, which every runner appends to (`python -m benchmarks results`).

Files are added or replaced on top of whatever the branch holds, never removed and never by force; where another runner
was faster, once more on top of its commit. A ref remembers what was fetched or pushed last, so that only what was
measured here since is pushed, and no older copy of another runner's file. Checkout and index stay untouched.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.history.points import ENVIRONMENT

BRANCH = "benchmark-results"
SYNCED = "refs/dllm-kernels/synced-results"  # the commit that the results here were last fetched from or pushed as
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

    def push(self) -> str | None:
        """Append what was measured here since; the branch's new commit, or None where there was nothing new.

        Raises:
            ValueError: a file here is damaged; nothing was pushed.
            RuntimeError: git failed, or other runners were faster too often.
        """
        changed = self._changed_here()
        if not changed:
            return None
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        message = f"Results: {', '.join(changed[:5])}{more}"
        for attempt in range(TRIES):
            tip = self._tip()
            tree = self._tree_with(changed, tip)
            if tip and tree == self._git("rev-parse", f"{tip}^{{tree}}"):
                self._git("update-ref", SYNCED, tip)
                return None
            commit = self._commit(tree, tip, message)
            pushed = self._run("push", "--quiet", self.remote, f"{commit}:refs/heads/{self.branch}")
            if pushed.returncode == 0:
                self._git("update-ref", SYNCED, commit)
                return commit
            if self._tip() == tip and "lock" not in pushed.stderr:
                raise RuntimeError(f"{self.remote} took no results: {pushed.stderr.strip()}")
            time.sleep(random.uniform(0, 0.1 * 2**attempt))
        raise RuntimeError(f"{self.remote} took no results: other runners were faster {TRIES} times; push again")

    def fetch(self) -> int:
        """Bring here what others appended; how many files. What was measured here since the last time stays.

        Raises:
            RuntimeError: git failed.
        """
        tip = self._tip()
        if tip is None:
            return 0
        synced, here = self._blobs(self._synced()), self._blobs_here()
        fetched = 0
        for name, blob in self._blobs(tip).items():
            if here.get(name) in (None, synced.get(name)) and here.get(name) != blob:
                self._write(name, subprocess.run(
                    ["git", "cat-file", "blob", blob], cwd=self.repository, capture_output=True, check=True
                ).stdout)  # fmt: skip
                fetched += 1
        self._git("update-ref", SYNCED, tip)
        return fetched

    def _changed_here(self) -> list[str]:
        for path in self._files():
            _expect_whole(path)
        synced = self._blobs(self._synced())
        return [name for name, blob in self._blobs_here().items() if synced.get(name) != blob]

    def _files(self) -> list[Path]:
        kinds = (".json", ENVIRONMENT)
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

    def _synced(self) -> str | None:
        found = self._run("rev-parse", "--verify", "--quiet", SYNCED)
        return found.stdout.strip() if found.returncode == 0 else None

    def _write(self, name: str, content: bytes) -> None:
        path = self.results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(content)
        os.replace(part, path)

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


def _expect_whole(path: Path) -> None:
    """A run that was killed while asv wrote leaves half a file."""
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged, {error}; delete it or measure that commit again") from error
    if path.suffix == ".json" and path.stem not in ("machine", "benchmarks"):
        missing = {"commit_hash", "results", "result_columns", "date"} - set(content)
        if missing:
            raise ValueError(f"{path}: expected asv's results; it lacks {', '.join(sorted(missing))}")


def thin(results: Path, older_than_days: int, today: datetime.date) -> int:
    """Drop the raw samples of commits older than that; medians, intervals and quartiles stay. How many files."""
    limit = datetime.datetime.combine(today, datetime.time(), datetime.timezone.utc)
    limit -= datetime.timedelta(days=older_than_days)
    thinned = 0
    for path in sorted(results.glob("*/*.json")):
        if path.stem == "machine":
            continue
        _expect_whole(path)
        content = json.loads(path.read_text())
        if content["date"] / 1e3 >= limit.timestamp() or not _drop_samples(content):
            continue
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content))
        os.replace(part, path)
        thinned += 1
    return thinned


def _drop_samples(content: dict[str, Any]) -> bool:
    """asv keeps columns by name, shorter where the last ones are empty."""
    column = content["result_columns"].index("samples")
    dropped = False
    for values in content["results"].values():
        if len(values) > column and values[column] is not None:
            values[column] = None
            dropped = True
    return dropped


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

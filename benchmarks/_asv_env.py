"""asv environment type `shared`: each commit's package in an environment of its own, over shared dependencies.

PyTorch takes minutes and gigabytes to install, and history should show our commits, not PyTorch's: every environment
reads the packages of the interpreter that runs asv through a `.pth` file. A plain path in such a file does not run the
`.pth` files at that path, so an editable install of this checkout does not leak into the environments.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from asv import util
from asv.console import log
from asv.plugins.virtualenv import Virtualenv

from benchmarks import whole


class Shared(Virtualenv):  # type: ignore[misc]
    """A virtual environment that asv installs nothing but the package into."""

    tool_name = "shared"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._executable = sys.executable

    def install_project(self, conf: Any, repo: Any, commit_hash: str) -> None:
        """Install a commit's package; one that cannot be built leaves a gap in the curves, and is said."""
        try:
            super().install_project(conf, repo, commit_hash)
        except util.ProcessError as error:
            log.warning(f"{commit_hash[:8]} cannot be built, so its place in the history stays empty: {error}")

    def _setup(self) -> None:
        util.check_call([sys.executable, "-m", "virtualenv", "--quiet", "-p", sys.executable, self._path])
        own = self.run_executable("python", ["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
        Path(own, "shared.pth").write_text("".join(f"{folder}\n" for folder in shared_folders()))


def shared_folders() -> list[str]:
    """Where the running interpreter finds installed packages, in its order."""
    return [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]


_write_json = util.write_json


def _write_json_whole(path: str, *arguments: Any, **options: Any) -> None:
    """asv writes in place: killed meanwhile it would leave half a result, and another run could read one."""
    with whole.file(Path(path)) as part:
        _write_json(str(part), *arguments, **options)


util.write_json = _write_json_whole

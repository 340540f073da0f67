"""An asv environment that holds one commit's package over the dependencies of the running interpreter.

asv would otherwise install PyTorch once more for every environment. The plug-in makes a bare virtual environment and
lets it see the running interpreter's packages through a .pth file; plain paths in one are not searched for further
.pth files, so an editable install of the working tree does not leak in.
"""

import sys
import sysconfig
from pathlib import Path

# asv's search for benchmarks imports this file too, in an environment that need not have asv.
try:
    from asv.plugins.virtualenv import Virtualenv
except ModuleNotFoundError:
    Virtualenv = None

if Virtualenv is not None:

    class Shared(Virtualenv):
        """`environment_type: shared`."""

        tool_name = "shared"

        @classmethod
        def _find_python(cls, python):
            return sys.executable

        @classmethod
        def matches(cls, python):
            return True

        def _setup(self):
            super()._setup()
            site_packages = Path(self.run_executable("python", ["-c", _PRINT_PURELIB]).strip())
            shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
            # Of a virtual environment that sees the system's packages, those too.
            shared |= {entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))}
            (site_packages / "_shared.pth").write_text("\n".join(sorted(shared)) + "\n")

    _PRINT_PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"

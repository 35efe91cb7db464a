"""Compress trained channel-attention image models into guided low-rank attention.

import csa2glmha

result = csa2glmha.convert("restormer.pth", rank=8, data="photos", degrade="noise:25")
model = csa2glmha.load("restormer-rank8/student.safetensors")
"""

# First, and without the import that annotations elsewhere begin with: see csa2glmha/core/environment.py.
from csa2glmha.core import environment

environment.leave_start_folder()
environment.prepare()

from typing import TYPE_CHECKING, Any  # noqa: E402

from csa2glmha.core.version import __version__  # noqa: E402

__all__ = ["__version__", "compress", "convert", "load"]

if TYPE_CHECKING:
    from csa2glmha.checkpoint.student import load
    from csa2glmha.commands.convert import convert
    from csa2glmha.compression.memory import compress


def __getattr__(name: str) -> Any:
    # Resolved on first use: `csa2glmha --help` and --version need not wait for PyTorch.
    if name == "compress":
        from csa2glmha.compression.memory import compress

        return compress
    if name == "convert":
        from csa2glmha.commands.convert import convert

        return convert
    if name == "load":
        from csa2glmha.checkpoint.student import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

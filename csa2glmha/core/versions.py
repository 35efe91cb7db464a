"""The versions that a bug report needs, without importing what they are of."""

from __future__ import annotations

import platform
from importlib import metadata

from csa2glmha.core.version import __version__

#: What results depend on, each with the names of its builds, in the order of a look-up.
_PACKAGES = {
    "torch": ("torch",),
    "onnx": ("onnx",),
    "onnxruntime": (
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-directml",
        "onnxruntime-openvino",
        "onnxruntime-qnn",
    ),
}


def describe_versions() -> str:
    """This tool, Python and the system, and the packages that results depend on, one to a line."""
    system = f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}"
    packages = [f"{name} {_version(distributions)}" for name, distributions in _PACKAGES.items()]
    return "\n".join([f"csa2glmha {__version__}", system, *packages])


def _version(distributions: tuple[str, ...]) -> str:
    """Version of the first that is installed, with its name where that is not the package's."""
    for name in distributions:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return version if name == distributions[0] else f"{version} ({name})"
    return "not installed"

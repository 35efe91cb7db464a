"""onnxsim on a file, for a process of its own: ``python -m csa2glmha.export.onnxsim_process SOURCE TARGET``.

Its own command line does more than simplify: it counts operations as formulas of the open sizes, for a table,
which takes ten times as long as all the rest.
"""

from __future__ import annotations

import sys


def main(source: str, target: str) -> None:
    """Simplify ``source`` into ``target``."""
    # They take seconds to import. onnxsim needs PyTorch for quantised networks in training only, sympy for
    # formulas in a table.
    for unused in ("torch", "sympy"):
        sys.modules[unused] = None  # type: ignore[assignment]
    import onnx
    import onnxsim

    simple, _ = onnxsim.simplify(onnx.load(source))
    onnx.save(simple, target)


if __name__ == "__main__":
    main(*sys.argv[1:])

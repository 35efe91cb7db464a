"""Values that are not finite, told with the layer they are in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # documented, but not in its __all__

from csa2glmha.core.errors import DataError


def check_finite(layer: str, what: str, tensors: Iterable[Tensor]) -> None:
    """Refuse what no statistics can be made of, or what came of such statistics.

    Raises:
        DataError: a tensor holds NaN or an infinity.
    """
    for tensor in tensors:
        if not bool(tensor.isfinite().all()):
            raise _overflow(layer, what)


@contextlib.contextmanager
def naming(layer: str) -> Iterator[None]:
    """Errors of decompositions within, which know nothing of layers, name this one.

    Raises:
        DataError: a decomposition fails.
    """
    what = "its statistics cannot be decomposed"
    try:
        yield
    except (LinAlgError, np.linalg.LinAlgError) as error:
        raise _overflow(layer, what) from error
    except ValueError as error:
        if "infs or NaNs" not in str(error):  # as SciPy has it
            raise
        raise _overflow(layer, what) from error


def _overflow(layer: str, what: str) -> DataError:
    return DataError(
        f"layer {layer}: {what}, values in it overflow on the calibration images; look at the checkpoint's "
        "weights there, and whether --data are images as it was trained on"
    )

"""What the numbers of several cubes mean, told from all cubes together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csa2glmha.core.errors import DataError
from csa2glmha.core.progress import progress, say
from csa2glmha.data.inputs.cubes import read_stored_cube
from csa2glmha.data.inputs.spectral import order_note
from csa2glmha.data.units import Extent, white_of_cubes


def white_of_files(paths: Sequence[Path], bands: int, mat_key: str | None) -> float:
    """What floats of all these cubes are divided by; those that cannot be read are met again later."""
    extents: dict[Path, Extent] = {}
    unordered = []
    for path in progress(paths, what="reading cubes", unit="file"):
        try:
            cube = read_stored_cube(path, bands, mat_key)
        except DataError:
            continue
        extents[path] = cube.extent
        if not cube.ordered:
            unordered.append(path)
    white = white_of_cubes(extents)
    for note in white.notes + order_note(unordered):
        say(note)
    return white.value

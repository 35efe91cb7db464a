"""How far a CASSI camera moves the bands of a scene: data and networks must agree on it."""

from __future__ import annotations

#: Columns between the places where neighbouring bands arrive.
DISPERSION = 2


def dispersed_width(width: int, bands: int, step: int = DISPERSION) -> int:
    """Columns that a scene of ``width`` columns and so many bands takes on the sensor."""
    return width + step * (bands - 1)

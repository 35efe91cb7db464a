"""What an ONNX file says of the inputs of a user's network, where it takes more than an image.

The file knows the inputs by names of its own and leaves sizes open. So that they can be given by name as to
the network itself, it holds what the network calls them, and the shapes of an example.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from csa2glmha.networks.foreign import ForeignNetwork, Shape, shapes_from

#: The entry of the metadata.
TAKES = "takes"


def takes(network: ForeignNetwork) -> dict[str, Any]:
    """Names and shapes of all inputs, as JSON values."""
    return {
        "names": list(network.argument_names),
        "shapes": [list(shape) for shape in network.interface.shapes],
    }


def taken(metadata: Mapping[str, str], count: int) -> tuple[tuple[str, ...], tuple[Shape, ...]]:
    """The same out of a file's metadata; nothing where it does not say so of as many inputs as it has."""
    try:
        told = json.loads(metadata[TAKES])
        names, shapes = tuple(map(str, told["names"])), shapes_from(told["shapes"])
    except (LookupError, TypeError, ValueError):
        return (), ()
    return (names, shapes) if len(names) == len(shapes) == count and len(shapes[0]) == 4 else ((), ())

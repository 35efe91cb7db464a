"""Matrix products as a module's code calls them: seen one by one, or replaced.

A recording shows operators. Below `x @ y`, `einsum` and the like these differ with sizes and devices. The
calls of the code do not: a product is known by its number among those of one call of its module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode

#: Names of the functions and methods that are matrix products, attention in one function included.
_NAMES = frozenset(
    (
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "linalg_matmul",
        "mm",
        "bmm",
        "baddbmm",
        "einsum",
        "scaled_dot_product_attention",
    )
)

#: Called in place of a product with its number, its function, and what that is called with.
Instead = Callable[[int, Callable[..., Any], tuple[Any, ...], Mapping[str, Any]], Any]


class OnProducts(TorchFunctionMode):
    """Calls ``instead`` in the place of every matrix product in the block; gradients and exports go through.

    Attributes:
        count: of the products so far.
    """

    def __init__(self, instead: Instead) -> None:
        super().__init__()
        self.count = 0
        self._instead = instead

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") not in _NAMES:
            return func(*args, **(kwargs or {}))
        number, self.count = self.count, self.count + 1
        return self._instead(number, func, args, kwargs or {})

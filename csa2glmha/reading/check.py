"""Whether what was read computes what the module computes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from csa2glmha.attention.canonical import tokens
from csa2glmha.attention.core import applied, folded
from csa2glmha.reading.linear import Unreadable
from csa2glmha.reading.reader import Reader
from csa2glmha.reading.recording import Call, Value
from csa2glmha.reading.wiring import arguments_of

#: The largest difference, as a share of the largest number, up to which two results are the same.
TOLERANCE = 1e-4
#: Rows with less than this are not divided by their norm but by this, as ``F.normalize`` does.
_SMALLEST_NORM = 1e-12


class CanonicalLayer(nn.Module):
    """A layer computed by its canonical form, called as the module is."""

    def __init__(self, module: nn.Module, reader: Reader) -> None:
        super().__init__()
        self._module = (module,)  # in a tuple, so that it is no submodule of this one
        self._reader, self._form = reader, reader.read(module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns."""
        return self.result(self._reader.bind(args, kwargs))

    def result(self, args: tuple[Any, ...]) -> Any:
        """As :meth:`forward`, from the arguments in order."""
        (module,), reader, form = self._module, self._reader, self._form
        x = reader.attention_inputs(args)[0]
        values = form.values.maps(x)
        factors, branch = reader.value_factors(module, args), reader.value_branch(module)
        matrix = folded(form.output, form.attention(self.logits(args)))
        y = applied(matrix, values if factors is None else values * factors, form.output_bias)
        return reader.module_output(args, y if branch is None else y + branch(values))

    def logits(self, args: tuple[Any, ...]) -> Tensor:
        """(B, heads, c, c), of a call with these arguments."""
        form = self._form
        queries, keys = form.queries_and_keys(self._reader.attention_inputs(args))
        queries = F.normalize(tokens(queries, form.heads), dim=-1, eps=_SMALLEST_NORM)
        keys = F.normalize(tokens(keys, form.heads), dim=-1, eps=_SMALLEST_NORM)
        return queries @ keys.transpose(-2, -1) * form.temperature.view(-1, 1, 1)


def tensors_of(call: Call) -> tuple[Any, ...]:
    """The arguments of a recorded call in the order of the module's signature, to be written to as well."""

    def copied(leaf: Any) -> Any:
        return leaf.tensor.detach().clone() if isinstance(leaf, Value) else leaf

    return tuple(tree_map(copied, list(arguments_of(call))))


@torch.no_grad()
def check_call(layer: CanonicalLayer, call: Call, logits: Tensor | None = None) -> float:
    """The difference to a recorded call of the module.

    Args:
        layer: the module's, to be checked.
        call: with one result.
        logits: (heads, c, c) that were recorded, to be compared too.

    Returns:
        The largest difference of the result, as a share of its largest number.

    Raises:
        Unreadable: the canonical form gives other logits, or another result.
    """
    args = tensors_of(call)
    if logits is not None and not difference(layer.logits(args)[0], logits) <= TOLERANCE:
        raise Unreadable(
            "its logits are not cosines of queries and keys over the pixels, times a temperature"
        )
    (output,) = call.outputs
    error = difference(layer.result(args), output.tensor)
    if not error <= TOLERANCE:
        raise Unreadable(
            f"its canonical form differs from what the module returned, by {error:.1e} of the largest"
        )
    return error


def difference(result: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest number that is expected; infinite at other shapes."""
    if result.shape != expected.shape:
        return float("inf")
    largest = float(expected.detach().abs().max().clamp_min(torch.finfo(torch.float32).tiny))
    return float((result - expected).detach().abs().max()) / largest

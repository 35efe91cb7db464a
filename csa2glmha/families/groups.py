"""What looks like channel attention in a state dict of an unknown network, by names and shapes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

#: What the logits of a head are multiplied by, as published code calls it.
_TEMPERATURE = re.compile(r"(?:.*\.)?(temperature|rescale|scale|logit_scale)\d*")
#: Projections to queries, keys or values, together or alone.
_PROJECTION = re.compile(
    r"(to_)?(qkv|kv|qk|q|k|v|query|key|value)(_?(proj|conv|linear|dwconv|\d+))*(\.\d+)*\.weight"
)


def attention_groups(state: Mapping[str, Tensor]) -> list[str]:
    """Prefixes under which a number for each head stands beside projections to queries, keys or values.

    That is what channel attention looks like; whether it is, only its code tells.
    """
    beside: dict[str, list[str]] = defaultdict(list)
    for name in state:
        parts = name.split(".")
        for length in range(len(parts)):
            beside[".".join(parts[:length])].append(".".join(parts[length:]))
    found = []
    for name, value in state.items():
        if value.numel() > 64 or (value.ndim > 1 and max(value.shape[-2:]) > 1):
            continue
        prefix = name.rpartition(".")[0]
        inside = [each for each in beside[prefix] if each]
        named = _TEMPERATURE.fullmatch(name) and any(_PROJECTION.fullmatch(each) for each in inside)
        shaped = value.ndim == 3 and any(_makes_three(state, prefix, each) for each in inside)
        if named or shaped:
            found.append(prefix)
    return list(dict.fromkeys(found))


def _makes_three(state: Mapping[str, Tensor], prefix: str, name: str) -> bool:
    """Whether that is a linear map to three times its channels, as to queries, keys and values together."""
    shape = state[f"{prefix}.{name}" if prefix else name].shape
    linear = len(shape) >= 2 and all(size == 1 for size in shape[2:])
    return linear and shape[1] > 1 and shape[0] == 3 * shape[1]

"""What looks like channel attention in a state dict of an unknown network, by names and shapes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

#: What the logits of a head are multiplied by, as published code calls it.
_TEMPERATURE = re.compile(r"(.*\.)?(temperature|rescale|scale|logit_scale)\d*")
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
        match = _TEMPERATURE.fullmatch(name)
        if match is None or value.numel() > 64 or (value.ndim > 1 and max(value.shape[-2:]) > 1):
            continue
        prefix = (match[1] or "").rstrip(".")
        if any(_PROJECTION.fullmatch(each) for each in beside[prefix]):
            found.append(prefix)
    return list(dict.fromkeys(found))

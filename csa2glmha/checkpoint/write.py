"""Writing weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from csa2glmha.core.files import atomic_path
from csa2glmha.core.strict_json import dumps

#: The length of the header, and the multiple that it is filled up to.
_LENGTH_BYTES = 8


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str],
    before_replacing: Callable[[], None] = lambda: None,
) -> None:
    """Write ``tensors`` with ``metadata`` as a safetensors file; an existing file is replaced at the end.

    The same tensors and metadata give the same bytes, whatever the order they come in.

    Tensors may be on any device, be views, and share memory; each is stored in full.

    Raises:
        OutputError: the file cannot be written.
    """
    owned: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in storages:
            plain = plain.clone()
        storages.add(plain.untyped_storage().data_ptr())
        owned[name] = plain
    # Serialised in memory: the library's own writer hides a full disk behind an error that is no OSError.
    data = _with_metadata(safetensors.torch.save(owned), metadata)
    with atomic_path(Path(path), before_replacing) as temporary:
        temporary.write_bytes(data)


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its metadata in alphabetical order; the library changes the order."""
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES:start])
    ordered = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    # The weights begin at a multiple of eight bytes, as the library has it.
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data[start:]

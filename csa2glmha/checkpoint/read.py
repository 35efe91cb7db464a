"""Reading trained weights from untrusted files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from csa2glmha.checkpoint.kinds import check_is_file, checkpoint_error, one_line
from csa2glmha.checkpoint.load import load_content
from csa2glmha.checkpoint.networks import Architecture
from csa2glmha.checkpoint.sizes import check_amount, is_plain
from csa2glmha.checkpoint.unwrap import Opened, open_weights
from csa2glmha.core.errors import UsageError
from csa2glmha.core.files import sha256_of
from csa2glmha.core.text import quoted
from csa2glmha.families.registry import known_families

#: What files of converted networks say of themselves; all their tensors are theirs, as they are named.
STUDENT_FORMAT = "csa2glmha-student"


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one file, ready for the model registry.

    Attributes:
        path: the file as the caller named it.
        state_dict: CPU tensors that own their memory; floating point ones are float32 and finite,
            others as stored. Wrappers and prefixes are off the names.
        sha256: of the file, 64 hexadecimal digits.
        metadata: the metadata of a safetensors header; empty for other files.
        wrapper: where in the file the weights were, "params" or "state_dict.net" for instance; None if
            they were at the top, without a prefix.
        notes: what was opened, changed or left out, one line each.
        others: what else the file holds that could be taken, by the names that ``weights`` takes.
    """

    path: Path
    state_dict: dict[str, Tensor]
    sha256: str
    metadata: dict[str, str]
    wrapper: str | None
    notes: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def weights(self) -> str:
        """What the weights that were taken are called; empty if the file leaves no choice."""
        return (self.wrapper or ".") if self.others else ""


def read_checkpoint(
    path: str | Path, weights: str | None = None, known: Sequence[Architecture] | None = None
) -> Checkpoint:
    """Read the weights of a .pth, .pt, .ckpt or .safetensors file without running any of its code.

    The network is found wherever it is: in nested dicts (``params_ema``, ``state_dict``, ...), under prefixes
    of names (``net.``, ``generator.``) and with wrapper modules in its names. Averaged weights are preferred.
    Floating point tensors become float32. Optimizer, epoch and so on are ignored.

    Args:
        path: the file.
        weights: which of several networks to take, by what it is called in the file; None: the averaged one.
        known: architectures to look for; None: the supported ones.

    Raises:
        CheckpointError: there is no such file; it is not a checkpoint, truncated, or would have to run
            code; it holds no state dict, or several networks to choose from; a weight is NaN or infinite.
        UsageError: the file has nothing that is called as ``weights``.
    """
    path = Path(path)
    check_is_file(path)
    try:
        content, metadata, notes = load_content(path)
        sha256 = sha256_of(path)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise checkpoint_error(path, reason, "check that you may read it and that its disk works") from error
    opened = _open(path, content, metadata, weights, known_families() if known is None else known)
    check_amount(path, opened.tensors)
    state_dict, dtype_notes = _to_float32(path, opened.tensors)
    _check_finite(path, state_dict)
    all_notes = (*notes, *opened.notes, *dtype_notes)
    return Checkpoint(path, state_dict, sha256, metadata, opened.label or None, all_notes, opened.others)


def is_student(path: Path) -> bool:
    """Whether a file is one of a converted network, by its header alone."""
    return header_of(path).get("format") == STUDENT_FORMAT


def header_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty of any other."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def _open(
    path: Path,
    content: object,
    metadata: dict[str, str],
    weights: str | None,
    known: Sequence[Architecture],
) -> Opened:
    if metadata.get("format") != STUDENT_FORMAT:
        return open_weights(path, content, weights, known)
    if weights is not None:
        raise UsageError(
            f"--weights {quoted(weights)}: {str(path)!r} is a student and has one set; leave it out"
        )
    assert isinstance(content, dict)
    return Opened(content, "", (), ())


def _to_float32(path: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Copies of ``tensors`` that no longer depend on the file, floating point ones as float32, and notes."""
    converted: Counter[torch.dtype] = Counter()
    state_dict = {}
    for name, tensor in tensors.items():
        if not is_plain(tensor):
            raise checkpoint_error(
                path,
                f"tensor {quoted(name)} is quantized, sparse or empty of data",
                "save it as plain floats",
            )
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        if dtype != tensor.dtype:
            converted[tensor.dtype] += 1
        state_dict[name] = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    notes = [
        f"{str(source).removeprefix('torch.')} {'narrowed' if source == torch.float64 else 'widened'} "
        f"to float32 ({count} of {len(tensors)} tensors)"
        for source, count in converted.items()
    ]
    return state_dict, notes


def _check_finite(path: Path, state_dict: dict[str, Tensor]) -> None:
    counts = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in state_dict.items()}
    affected = [name for name, count in counts.items() if count]
    if affected:
        first = affected[0]
        raise checkpoint_error(
            path,
            f"tensor {quoted(first)} holds {counts[first]} NaN or Inf (as float32) among its "
            f"{state_dict[first].numel()} values ({len(affected)} of {len(state_dict)} tensors affected)",
            "use a checkpoint from before the training diverged",
        )

"""Reading trained weights from untrusted files, and writing weights.

What a file is, is decided by its content; its suffix only helps where the content says nothing. No
pickle is ever run: PyTorch files go through the restricted unpickler of ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import codecs
import difflib
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from csa2glmha.errors import CheckpointError
from csa2glmha.files import atomic_path, sha256_of

# In the order of preference: where several are present, the first one is opened.
_WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "model", "net_g", "net")
# DataParallel, torch.compile, Lightning, and the trainers of BasicSR.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net_g.")
_MAX_WRAPPER_DEPTH = 4  # a pickle can hold a dict that holds itself

_HEAD_BYTES = 512
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml")
# torch.save before 1.6 begins with this number, 0x1950a86a20f9469cfc6c, as a pickled long.
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_SAFETENSORS_MAX_HEADER = 100_000_000  # the format's own limit, in bytes

_RESAVE = (
    "in a trusted environment re-save it as a state dict: torch.save(model.state_dict(), ...) or safetensors"
)
_DOWNLOAD_AGAIN = "the file is probably truncated or damaged, download or copy it again"


class _Ignored:
    """Takes the place of a plain object that training loops store beside the weights; keeps nothing."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _EmptyDict:
    """Takes the place of ``collections.defaultdict``: the unpickler then fills an ordinary dict."""

    def __new__(cls, *args: object) -> Any:
        return {}


def _stand_in(base: type, full_name: str) -> type:
    module, _, name = full_name.rpartition(".")
    return type(name, (base,), {"__module__": module, "__qualname__": name})


# torch.load looks an allowed global up by the name its object carries. These carry the names of plain
# data types but none of their code (numpy's own dtype and scalar constructors are not memory-safe on
# forged input), so allowing them cannot do anything, whatever the file asks for.
_STAND_INS: list[Any] = [
    *(
        _stand_in(_Ignored, name)
        for name in (
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "numpy.ndarray",
            "numpy.dtype",
            "argparse.Namespace",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib._local.PosixPath",
            "pathlib._local.WindowsPath",
            "builtins.list",
            "builtins.dict",
            "builtins.int",
            "builtins.float",
        )
    ),
    _stand_in(_EmptyDict, "collections.defaultdict"),
]


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one file, ready for the model registry.

    Attributes:
        path: the file as the caller named it.
        state_dict: CPU tensors that own their memory; floating point ones are float32 and finite,
            others as stored. Wrapper and shared prefixes are off the names.
        sha256: of the file, 64 hexadecimal digits.
        metadata: the metadata of a safetensors header; empty for other files.
        wrapper: where in the file the state dict was, "params" or "model.state_dict" for instance;
            None if the file is a plain state dict.
        notes: what was changed or left out on the way, one short phrase each.
    """

    path: Path
    state_dict: dict[str, Tensor]
    sha256: str
    metadata: dict[str, str]
    wrapper: str | None
    notes: tuple[str, ...]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights of a .pth, .pt, .ckpt or .safetensors file without running any of its code.

    Opens the usual wrappers of training checkpoints (``params_ema``, ``params``, ``state_dict``, ...,
    nested ones too), removes prefixes that all names share (``module.``, ...) and makes floating point
    tensors float32. Optimizer, epoch and so on are ignored.

    Raises:
        CheckpointError: there is no such file; it is not a checkpoint, truncated, or would have to run
            code; it holds no state dict; a weight is NaN or infinite.
    """
    path = Path(path)
    _check_is_file(path)
    try:
        content, metadata, notes = _load(path)
        sha256 = sha256_of(path)
    except OSError as error:
        reason = error.strerror or _one_line(error)
        raise _error(path, reason, "check that you may read it and that its disk works") from error
    found = _find_state_dict(content, ())
    if found is None:
        raise _no_state_dict(path, content)
    wrappers, entries, wrapper_notes = found
    tensors, name_notes = _named_tensors(entries)
    state_dict, dtype_notes = _to_float32(path, tensors)
    _check_finite(path, state_dict)
    notes += wrapper_notes + name_notes + dtype_notes
    return Checkpoint(path, state_dict, sha256, metadata, ".".join(wrappers) or None, tuple(notes))


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write ``tensors`` with ``metadata`` as a safetensors file; an existing file is replaced at the end.

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
    data = safetensors.torch.save(owned, metadata)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(data)


# --- what kind of file it is


def _check_is_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise _error(path, "is a folder", "give the .pth, .pt, .ckpt or .safetensors file itself")
        if path.is_file():
            return
        exists = path.exists()
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else None
    except OSError as error:
        raise _error(
            path, error.strerror or _one_line(error), "check the path and its permissions"
        ) from error
    if exists:
        raise _error(path, "is not a regular file", "give a .pth, .pt, .ckpt or .safetensors file")
    if siblings is None:
        raise _error(path, f"there is no folder {str(path.parent)!r}", "check the path")
    close = difflib.get_close_matches(path.name, siblings, n=3)
    advice = f"did you mean {_listed(close)}?" if close else "check the name and the folder"
    raise _error(path, "there is no such file", advice)


def _load(path: Path) -> tuple[Any, dict[str, str], list[str]]:
    """What the file holds, its metadata, and notes. Raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise _error(path, "the file is empty", "download or copy it again")
    if head.startswith(_ZIP_STARTS):
        return _load_zip(path)
    if _is_safetensors(head):
        content, metadata = _load_safetensors(path)
        return content, metadata, []
    if _LEGACY_MAGIC in head[:32]:
        return _load_torch(path, mapped=False), {}, []
    raise _error(path, *_what_it_is(path, head))


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_MAX_HEADER


def _what_it_is(path: Path, head: bytes) -> tuple[str, str]:
    """What a file that is no checkpoint is instead, and what to do about it."""
    suffix = path.suffix.lower()
    text = _as_text(head)
    if head.startswith(_LFS_POINTER):
        return "is a Git LFS pointer, not the file itself", "run `git lfs pull` in its repository"
    if head.lstrip().lower().startswith(_HTML_STARTS):
        return "is a web page (HTML)", "download the raw file, not the page that shows it"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "is a Python pickle that torch.save did not write; it was refused and NOT run", _RESAVE
    if suffix == ".onnx" or _is_onnx(head):
        return "is an ONNX model", "give the PyTorch or safetensors checkpoint that it was made from"
    if head[257:262] == b"ustar" or head.startswith(b"\x1f\x8b"):
        return "is a packed archive (tar or gzip)", "unpack it and give the checkpoint in it"
    if text:
        return f"is a text file that begins {text[:40]!r}", "give a PyTorch or safetensors file"
    if suffix == ".safetensors":
        return "has no valid safetensors header", _DOWNLOAD_AGAIN
    return f"is neither a PyTorch nor a safetensors file (it begins {head[:8].hex(' ')})", "check the path"


def _as_text(head: bytes) -> str | None:
    try:
        # Incremental: the last character may be cut.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    return text if all(character.isprintable() or character.isspace() for character in text) else None


def _is_onnx(head: bytes) -> bool:
    # A ModelProto begins with field 1, ir_version, as a small varint; then producer_name, ..., graph,
    # or opset_import: fields 2 to 8 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
    return (
        len(head) > 2
        and head[0] == 0x08
        and 3 <= head[1] <= 31
        and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42"
    )


# --- the loaders


def _load_zip(path: Path) -> tuple[Any, dict[str, str], list[str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            broken = archive.testzip()
    except OSError:
        raise
    except Exception as error:  # zipfile reports damage through many types besides BadZipFile
        raise _error(
            path, f"begins as a zip archive but is no complete one ({_one_line(error)})", _DOWNLOAD_AGAIN
        ) from error
    _check_torch_archive(path, [entry.filename for entry in entries])
    # Not fatal: torch.save can be told to leave the checksums out.
    notes = [f"the checksum of record {broken!r} does not match, the file may be damaged"] if broken else []
    # torch.load would take the bytes of a compressed record for the weights. A file named .safetensors
    # it would not even try to open as its own format.
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    return _load_torch(path, mapped=stored and path.suffix.lower() != ".safetensors"), {}, notes


def _check_torch_archive(path: Path, names: list[str]) -> None:
    if any(name.endswith("/constants.pkl") for name in names):
        raise _error(
            path,
            "is a TorchScript archive, which is a program and not weights alone",
            "save the weights with torch.save(torch.jit.load(...).state_dict(), ...)",
        )
    if not any(name.endswith("/data.pkl") for name in names):
        held = f"it holds {_listed(names)}" if names else "it is empty"
        raise _error(
            path, f"is a zip archive but not a checkpoint: {held}", "give the checkpoint file itself"
        )


def _load_torch(path: Path, mapped: bool) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals(_STAND_INS):
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        try:
            if mapped:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise _refused(path, error) from error
        except OSError:
            raise
        except Exception as error:  # damaged bytes make the unpickler fail in any way there is
            raise _error(path, f"cannot be decoded ({_one_line(error)})", _DOWNLOAD_AGAIN) from error


def _refused(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    name = re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error))
    if name:
        what = f"it holds the object {name[1]!r}, which weights do not need; it was refused and NOT run"
    else:
        # torch puts advice before the reason and a link after it.
        reason = str(error).rpartition("\n\n")[0] or str(error)
        reason = reason.rpartition("WeightsUnpickler error:")[2]
        what = f"it is damaged or no plain weights ({_one_line(reason)}); it was refused and NOT run"
    return _error(path, what, _RESAVE)


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise _error(path, f"is a broken safetensors file ({_one_line(error)})", _DOWNLOAD_AGAIN) from error


# --- from a file's content to a state dict


def _find_state_dict(
    node: Any, wrappers: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[Any, Any], list[str]] | None:
    """The wrappers on the way to the first dict that holds tensors, that dict, and notes."""
    if not isinstance(node, dict) or len(wrappers) > _MAX_WRAPPER_DEPTH:
        return None
    for name in _WRAPPERS:
        found = _find_state_dict(node.get(name), (*wrappers, name))
        if found:
            path, entries, notes = found
            notes = [f"wrapper {name!r} opened", *notes]
            if name == "params_ema" and isinstance(node.get("params"), dict):
                notes.insert(0, "both 'params_ema' and 'params' present, 'params_ema' used")
            return path, entries, notes
    if any(_is_named_tensor(name, value) for name, value in node.items()):
        return wrappers, node, []
    return None


def _is_named_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _no_state_dict(path: Path, content: Any) -> CheckpointError:
    if isinstance(content, dict):
        held = f"a dict with the keys {_listed(content)}" if content else "an empty dict"
    else:
        held = f"a {type(content).__name__}"
    return _error(
        path,
        f"no state dict in it, it holds {held}",
        f"expected named tensors, alone or under one of {', '.join(_WRAPPERS)}",
    )


def _named_tensors(entries: dict[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors among ``entries`` without the prefixes that all their names share, and notes."""
    notes = []
    tensors = {name: value for name, value in entries.items() if _is_named_tensor(name, value)}
    others = [name for name in entries if name not in tensors]
    if others:
        notes.append(f"{len(others)} entries that are no tensors ignored: {_listed(others)}")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        notes.append(f"prefix {prefix!r} removed")
    return tensors, notes


def _to_float32(path: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Copies of ``tensors`` that no longer depend on the file, floating point ones as float32, and notes."""
    converted: Counter[torch.dtype] = Counter()
    state_dict = {}
    for name, tensor in tensors.items():
        if tensor.is_quantized or tensor.is_nested or tensor.is_meta or tensor.layout is not torch.strided:
            raise _error(
                path, f"tensor {name!r} is quantized, sparse or empty of data", "save it as plain floats"
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
        raise _error(
            path,
            f"tensor {first!r} holds {counts[first]} NaN or Inf (as float32) among its "
            f"{state_dict[first].numel()} values ({len(affected)} of {len(state_dict)} tensors affected)",
            "use a checkpoint from before the training diverged",
        )


# --- messages


def _error(path: Path, what: str, advice: str) -> CheckpointError:
    return CheckpointError(f"cannot use checkpoint {str(path)!r}: {what}; {advice}")


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:160] or type(reason).__name__


def _listed(names: Iterable[object], limit: int = 5) -> str:
    shown = [repr(name)[:60] for name in names]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more

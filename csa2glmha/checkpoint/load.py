"""Loading what a checkpoint holds, without running any of its code."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from csa2glmha.checkpoint.kinds import (
    DOWNLOAD_AGAIN,
    HEAD_BYTES,
    LEGACY_MAGIC,
    RESAVE,
    ZIP_STARTS,
    checkpoint_error,
    is_safetensors,
    one_line,
    what_it_is,
)
from csa2glmha.checkpoint.pickles import rewritten_archive, rewritten_legacy
from csa2glmha.core.errors import CheckpointError
from csa2glmha.core.files import reachable
from csa2glmha.core.text import listed

#: Weights hardly get smaller by compression; zeros do, so a small file may still unpack to this much.
_PACKING_MOST, _PACKING_SLACK = 16, 1 << 29


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
            "numpy.core.numeric._frombuffer",
            "numpy._core.numeric._frombuffer",
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
            "builtins.frozenset",
        )
    ),
    _stand_in(_EmptyDict, "collections.defaultdict"),
]


def load_content(path: Path) -> tuple[Any, dict[str, str], list[str]]:
    """What the file holds, its metadata, and notes. Raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise checkpoint_error(path, "the file is empty", "download or copy it again")
    if head.startswith(ZIP_STARTS):
        return _load_zip(path)
    if is_safetensors(head):
        content, metadata = _load_safetensors(path)
        return content, metadata, []
    if LEGACY_MAGIC in head[:32]:
        return _load_torch(path, False, rewritten_legacy), {}, []
    raise checkpoint_error(path, *what_it_is(path, head))


def _load_zip(path: Path) -> tuple[Any, dict[str, str], list[str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_unpacked_size(path, entries)
            broken = archive.testzip()
    except (OSError, CheckpointError):
        raise
    except Exception as error:  # zipfile reports damage through many types besides BadZipFile
        raise checkpoint_error(
            path, f"begins as a zip archive but is no complete one ({one_line(error)})", DOWNLOAD_AGAIN
        ) from error
    _check_torch_archive(path, [entry.filename for entry in entries])
    # Not fatal: torch.save can be told to leave the checksums out.
    notes = [f"the checksum of record {broken!r} does not match, the file may be damaged"] if broken else []
    # torch.load would take the bytes of a compressed record for the weights. A file named .safetensors
    # it would not even try to open as its own format.
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    mapped = stored and path.suffix.lower() != ".safetensors"
    return _load_torch(path, mapped, rewritten_archive), {}, notes


def _check_unpacked_size(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse a small file that would unpack to what fills the memory; torch.save compresses nothing."""
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > _PACKING_MOST * path.stat().st_size + _PACKING_SLACK:
        raise checkpoint_error(
            path,
            f"is compressed: its {path.stat().st_size / 1e6:.1f} MB would unpack to {unpacked / 1e9:.1f} GB",
            "if you trust it, unpack it and pack it again without compression (zip -0)",
        )


def _check_torch_archive(path: Path, names: list[str]) -> None:
    if any(name.endswith("/constants.pkl") for name in names):
        raise checkpoint_error(
            path,
            "is a TorchScript archive, which is a program and not weights alone",
            "save the weights with torch.save(torch.jit.load(...).state_dict(), ...)",
        )
    if not any(name.endswith("/data.pkl") for name in names):
        held = f"it holds {listed(names)}" if names else "it is empty"
        raise checkpoint_error(
            path, f"is a zip archive but not a checkpoint: {held}", "give the checkpoint file itself"
        )


def _load_torch(path: Path, mapped: bool, rewritten: Callable[[Path], BinaryIO | None]) -> Any:
    """What the restricted unpickler makes of the file, or of what ``rewritten`` gives in its place."""
    with warnings.catch_warnings(), torch.serialization.safe_globals(_STAND_INS):
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        try:
            translated = rewritten(path)
            if translated is not None:
                return torch.load(translated, map_location="cpu", weights_only=True)
            if mapped:
                with reachable(path) as name:
                    return torch.load(name, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise _refused(path, error) from error
        except OSError:
            raise
        except Exception as error:  # damaged bytes make the unpickler fail in any way there is
            raise checkpoint_error(path, f"cannot be decoded ({one_line(error)})", DOWNLOAD_AGAIN) from error


def _refused(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    name = re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error))
    if name:
        what = f"it holds the object {name[1]!r}, which weights do not need; it was refused and NOT run"
    else:
        # torch puts advice before the reason and a link after it.
        reason = str(error).rpartition("\n\n")[0] or str(error)
        reason = reason.rpartition("WeightsUnpickler error:")[2]
        what = f"it is damaged or no plain weights ({one_line(reason)}); it was refused and NOT run"
    return checkpoint_error(path, what, RESAVE)


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with reachable(path) as name, safe_open(name, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise checkpoint_error(
            path, f"is a broken safetensors file ({one_line(error)})", DOWNLOAD_AGAIN
        ) from error

"""What kind of file a checkpoint is, by its content, and what to do about one that is none."""

from __future__ import annotations

import codecs
import difflib
from pathlib import Path

from csa2glmha.core.errors import CheckpointError
from csa2glmha.core.text import listed

HEAD_BYTES = 512
ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml")
# torch.save before 1.6 begins with this number, 0x1950a86a20f9469cfc6c, as a pickled long.
LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_SAFETENSORS_MAX_HEADER = 100_000_000  # the format's own limit, in bytes

RESAVE = (
    "in a trusted environment re-save it as a state dict: torch.save(model.state_dict(), ...) or safetensors"
)
DOWNLOAD_AGAIN = "the file is probably truncated or damaged, download or copy it again"


def checkpoint_error(path: Path, what: str, advice: str) -> CheckpointError:
    """The error in one line: which file, what is wrong, what to do about it."""
    return CheckpointError(f"cannot use checkpoint {str(path)!r}: {what}; {advice}")


def one_line(reason: object) -> str:
    """The beginning of another library's message, on one line."""
    text = "".join(c if c.isprintable() else " " for c in str(reason))
    return " ".join(text.split())[:160] or type(reason).__name__


def check_is_file(path: Path) -> None:
    """Raise CheckpointError unless there is such a file; names of similar ones are suggested."""
    try:
        if path.is_dir():
            raise checkpoint_error(
                path, "is a folder", "give the .pth, .pt, .ckpt or .safetensors file itself"
            )
        if path.is_file():
            return
        exists = path.exists()
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else None
    except OSError as error:
        raise checkpoint_error(
            path, error.strerror or one_line(error), "check the path and its permissions"
        ) from error
    if exists:
        raise checkpoint_error(path, "is not a regular file", "give a .pth, .pt, .ckpt or .safetensors file")
    if siblings is None:
        raise checkpoint_error(path, f"there is no folder {str(path.parent)!r}", "check the path")
    close = difflib.get_close_matches(path.name, siblings, n=3)
    advice = f"did you mean {listed(close)}?" if close else "check the name and the folder"
    raise checkpoint_error(path, "there is no such file", advice)


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors files do."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_MAX_HEADER


def what_it_is(path: Path, head: bytes) -> tuple[str, str]:
    """What a file that is no checkpoint is instead, and what to do about it."""
    suffix = path.suffix.lower()
    text = _as_text(head)
    if head.startswith(_LFS_POINTER):
        return "is a Git LFS pointer, not the file itself", "run `git lfs pull` in its repository"
    if head.lstrip().lower().startswith(_HTML_STARTS):
        return "is a web page (HTML)", "download the raw file, not the page that shows it"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "is a Python pickle that torch.save did not write; it was refused and NOT run", RESAVE
    if suffix == ".onnx" or _is_onnx(head):
        return "is an ONNX model", "give the PyTorch or safetensors checkpoint that it was made from"
    if head[257:262] == b"ustar" or head.startswith(b"\x1f\x8b"):
        return "is a packed archive (tar or gzip)", "unpack it and give the checkpoint in it"
    if text:
        return f"is a text file that begins {text[:40]!r}", "give a PyTorch or safetensors file"
    if suffix == ".safetensors":
        return "has no valid safetensors header", DOWNLOAD_AGAIN
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

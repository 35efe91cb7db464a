"""The files of states: how they are called, which are ours, and how they go."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

import safetensors
from safetensors import SafetensorError

FORMAT = "csa2glmha-state"
POSITION_FILE, TENSOR_FILE = "state.json", "tensors.safetensors"
#: Beside the states, the student that the training began with, where that is needed in the end.
INITIAL_FILE = "initial.safetensors"

STEP_FOLDER = re.compile(r"step-(\d{8,})")
DAMAGED_PREFIX, TEMPORARY_PREFIX = "damaged-", ".csa2glmha-"
DAMAGED = re.compile(r"damaged-step-\d{8,}-[0-9a-f]+")
TEMPORARY = re.compile(r"\.csa2glmha-[0-9a-f]+(\.\w+)?")


def is_ours(entry: Path) -> bool:
    """Whether an entry of a folder of states is one that was made here; links never are."""
    name = entry.name
    if STEP_FOLDER.fullmatch(name) or DAMAGED.fullmatch(name):
        return is_state(entry, any_name=True)
    if entry.is_symlink():
        return False
    if TEMPORARY.fullmatch(name):
        return entry.is_file() or is_state(entry, any_name=True)
    return name == INITIAL_FILE and entry.is_file() and _may_be_initial(entry)


def is_state(folder: Path, any_name: bool = False) -> bool:
    """Whether a folder holds nothing but a state, whole or not; others have folders of such names, too."""
    if not (any_name or STEP_FOLDER.fullmatch(folder.name)) or folder.is_symlink() or not folder.is_dir():
        return False
    for entry in folder.iterdir():
        known = entry.name in (POSITION_FILE, TENSOR_FILE) or TEMPORARY.fullmatch(entry.name)
        if not known or entry.is_symlink() or not entry.is_file():
            return False
    try:
        content = json.loads((folder / POSITION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True  # damaged, or not yet complete
    return isinstance(content, dict) and content.get("format", FORMAT) == FORMAT


def _may_be_initial(path: Path) -> bool:
    """Whether a file of that name is none of somebody else's; one that cannot be read may be damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return True
    return "fits" in metadata


def remove(entry: Path) -> None:
    """Delete a file, or a folder with what a state has in it: never more than that."""
    with contextlib.suppress(OSError):
        if entry.is_symlink() or not entry.is_dir():
            entry.unlink()
            return
        for each in list(entry.iterdir()):
            if each.name in (POSITION_FILE, TENSOR_FILE) or TEMPORARY.fullmatch(each.name):
                each.unlink()
        entry.rmdir()


def flush_folder(path: Path) -> None:
    """Make a rename last over a power failure, where the file system offers that."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

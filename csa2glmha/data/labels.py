"""The true classes of images, where each class has a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """Classes by the folders that images are in, numbered in the order of their names, as is usual.

    Attributes:
        folders: one for each class, sorted.
    """

    folders: tuple[str, ...]

    def one_hot(self, name: str) -> Tensor:
        """(classes,) with a one for the class of an image, by its path in the folder of all classes."""
        found = torch.zeros(len(self.folders))
        found[self.folders.index(_folder(name))] = 1
        return found


def labels_of(folder: Path, names: Sequence[str], classes: int) -> tuple[Labels | None, tuple[str, ...]]:
    """The classes of images, where a folder has as many folders as there are classes, and notes.

    Args:
        folder: of all images.
        names: of the images, paths in it.
        classes: of the network.
    """
    folders = tuple(sorted(each.name for each in folder.iterdir() if each.is_dir()))
    if len(folders) < 2:
        return None, ()
    if len(folders) != classes:
        return None, (
            f"{folder}: {len(folders)} folders are not the {classes} classes of the network: no true class "
            "is known, outputs are compared with the teacher's alone",
        )
    outside = [name for name in names if _folder(name) not in folders]
    if outside:
        return None, (
            f"{folder}: {outside[0]} is in no folder of a class: no true class is known, outputs are "
            "compared with the teacher's alone",
        )
    return Labels(folders), (f"{folder}: true classes are those of its {classes} folders, sorted by name",)


def _folder(name: str) -> str:
    first, slash, _ = name.partition("/")
    return first if slash else ""

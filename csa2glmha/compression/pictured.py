"""Teacher and student on one image, as pictures in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from csa2glmha.core.files import atomic_path
from csa2glmha.data.batches import Example
from csa2glmha.data.images import write_image
from csa2glmha.metrics.evaluate import Restore
from csa2glmha.metrics.pictures import as_large_as, comparison, plot_spectra, spectral_comparison
from csa2glmha.report.sections.summary import PICTURE_FILE, SPECTRA_FILE


@dataclass(frozen=True)
class Pictured:
    """One image, (C, H, W) each.

    Attributes:
        given: the network's first input.
        before, after: outputs of teacher and student.
        ground_truth: None where it is not known.
        spectral: channels of the outputs are bands of a spectrum.
    """

    given: Tensor
    before: Tensor
    after: Tensor
    ground_truth: Tensor | None
    spectral: bool

    @classmethod
    def of(cls, example: Example, teacher: Restore, student: Restore, spectral: bool) -> Pictured:
        """What the two make of an example."""
        before, after = teacher(example.inputs), student(example.inputs)
        return cls(as_large_as(example.inputs[0][0], before), before, after, example.ground_truth, spectral)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of what is written."""
        return (PICTURE_FILE, SPECTRA_FILE) if self.spectral else (PICTURE_FILE,)

    def write(self, folder: Path) -> None:
        """Write the files into a folder.

        Raises:
            OutputError: one cannot be written.
        """
        if not self.spectral:
            picture = comparison(self.given, self.before, self.after, self.ground_truth)
            write_image(folder / PICTURE_FILE, picture)
            return
        write_image(folder / PICTURE_FILE, spectral_comparison(self.before, self.after, self.ground_truth))
        with atomic_path(folder / SPECTRA_FILE) as temporary:
            plot_spectra(temporary, self.before, self.after, self.ground_truth)

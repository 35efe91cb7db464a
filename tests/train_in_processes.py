"""What each process runs in the test of several."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from csa2glmha.distill import TrainingLog, distill
from tests.distilling import Crops, make_held_out


@dataclass(frozen=True)
class BadInOneProcess(Crops):
    """Of a bad step, the first process's share alone is bad."""

    def batch(self, step: int, first: int, count: int) -> Any:
        share = Crops(
            self.seed, self.ground_truth, self.bad if os.environ["RANK"] == "0" else range(0), self.value
        )
        return share.batch(step, first, count)


def main() -> None:
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    # Our own file of a moment ago, which holds networks.
    (teacher, student), settings = torch.load(folder / "job.pt", weights_only=False)
    if rank == "1":
        with torch.no_grad():
            student.output.weight.add_(1.0)  # the first process's weights count
    result = distill(
        student,
        teacher,
        BadInOneProcess(bad=range(3, 4)),
        make_held_out(teacher),
        settings,
        log=TrainingLog(folder / "log"),
    )
    values = {"weights": student.state_dict(), "skipped": result.skipped, "after": result.after}
    torch.save(values, folder / f"result{rank}.pt")


main()

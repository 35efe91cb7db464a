"""Train the small teachers that this project's figures are made with.

    python recipes/train_teacher.py denoiser --images BSDS500/images/train -o teacher.safetensors
    python recipes/train_teacher.py spectra --images BSDS500/images/train -o spectra.safetensors

`denoiser` is what `csa2glmha demo` compresses: a Restormer of 0.80 M parameters for colour Gaussian
noise of sigma 25 (of 255). `spectra` is an MST++ of one stage, 0.54 M parameters, that turns RGB images
with noise of sigma 10 into 31 bands of 400 to 700 nm; the bands are synthetic spectra, made from the clean
images. Both are trained from scratch on the 200 BSDS500 training images with the L1 loss. Everything
that decides the result is in the constants below. Either takes about an hour on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from csa2glmha.data.inputs.synthetic import synthetic_spectra
from csa2glmha.families.registry import build

WARMUP_STEPS = 200
SEED = 0


@dataclass(frozen=True)
class Task:
    """A network and what it learns.

    Attributes:
        task: in words, for the file's metadata.
        architecture, hyperparameters: of the network.
        sigma: noise on its input.
        target: what it should make of a clean image, given clean images.
        stages: (steps, batch size, patch size); large patches last, when they matter for the attention's
            statistics.
        learning_rate: at its peak.
    """

    task: str
    architecture: str
    hyperparameters: dict[str, Any]
    sigma: float
    target: Callable[[Tensor], Tensor]
    stages: tuple[tuple[int, int, int], ...]
    learning_rate: float


TASKS = {
    "denoiser": Task(
        "colour Gaussian denoising, sigma 25/255",
        "restormer",
        {
            "dim": 16,
            "num_blocks": [1, 1, 1, 1],
            "num_refinement_blocks": 1,
            "heads": [1, 1, 2, 4],
            "ffn_expansion_factor": 2.66,
            "norm_bias": False,
        },
        25 / 255,
        lambda clean: clean,
        ((7500, 8, 48), (1500, 4, 96)),
        1.5e-3,
    ),
    "spectra": Task(
        "synthetic spectra, 31 bands of 400 to 700 nm, from RGB with noise of sigma 10/255",
        "mst_plus_plus",
        {"in_channels": 3, "n_feat": 31, "stage": 1, "num_blocks": [1, 1, 1]},
        10 / 255,
        lambda clean: synthetic_spectra(clean, 31),
        ((6000, 8, 48), (1200, 4, 96)),
        8e-4,
    ),
}


def load_images(folder: Path) -> list[Tensor]:
    """Read every JPEG or PNG below ``folder`` as uint8 (3, H, W)."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".png"})
    images = []
    for path in paths:
        bgr = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        images.append(torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1).contiguous())
    if not images:
        raise SystemExit(f"no .jpg or .png image in {folder}")
    return images


def random_batch(images: list[Tensor], batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Clean (batch, 3, size, size) patches in [0, 1], flipped and rotated at random."""
    patches = []
    for _ in range(batch):
        pick, top, left, turns, mirror = torch.rand(5, generator=generator).tolist()
        image = images[int(pick * len(images))]
        top_pixel = int(top * (image.shape[1] - size + 1))
        left_pixel = int(left * (image.shape[2] - size + 1))
        patch = image[:, top_pixel : top_pixel + size, left_pixel : left_pixel + size]
        patch = patch.rot90(int(turns * 4), (1, 2))
        patches.append(patch.flip(2) if mirror < 0.5 else patch)
    return torch.stack(patches).float() / 255


def schedule(step: int, total: int) -> float:
    """Factor of the learning rate: linear warm-up, then a half cosine to a thousandth."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / (total - WARMUP_STEPS)
    return 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * progress))


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    task = TASKS[arguments.task]

    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    images = load_images(arguments.images)
    model = build(task.architecture, task.hyperparameters).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), task.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    total = sum(steps for steps, _, _ in task.stages)
    started, step, smooth = time.time(), 0, 0.0
    with tqdm(total=total, unit="step") as bar:
        for steps, batch, size in task.stages:
            for _ in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = task.learning_rate * schedule(step, total)
                clean = random_batch(images, batch, size, generator)
                noisy = clean + task.sigma * torch.randn(clean.shape, generator=generator)
                difference = model(noisy) - task.target(clean)
                loss = difference.abs().mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                quality = -10 * math.log10(difference.detach().square().mean().item())
                smooth = quality if step == 0 else 0.99 * smooth + 0.01 * quality
                step += 1
                bar.update()
                if step % 50 == 0:
                    bar.set_postfix(loss=f"{loss.item():.4f}", psnr=f"{smooth:.2f}")
    # Half precision halves the file; the rounding moves the output by less than 0.001 dB.
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {
        "task": task.task,
        "training_data": "BSDS500 train, 200 images (Berkeley, non-commercial research and education)",
        "hyperparameters": json.dumps(task.hyperparameters),
        "steps": str(total),
        "seed": str(SEED),
        "minutes": f"{(time.time() - started) / 60:.0f}",
    }
    save_file(weights, arguments.output, metadata)


if __name__ == "__main__":
    main()

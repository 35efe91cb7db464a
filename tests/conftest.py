"""Fixtures that several test files share."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Networks this small are slower on several threads, and one thread adds up in one order: of processes that
# tests start, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import csa2glmha  # noqa: F401  # before PyTorch: it says how threads wait, here and in child processes

# isort: split
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from tensorly.decomposition import parafac
from torch import Tensor

from csa2glmha.commands import convert
from csa2glmha.compression.exporting import Export
from csa2glmha.compression.files import CONVERSION_STAGES, replaced
from csa2glmha.core.environment import cpu_count
from csa2glmha.core.progress import telling
from csa2glmha.data.batches import Inputs
from csa2glmha.data.images import write_image
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.initialize import factors
from csa2glmha.initialize.factorize import SeparableFactors, factorize
from tests.hub_server import Hub, serve
from tests.subjects import SUBJECTS

torch.set_num_threads(1)

# A shell starts commands in the background with interrupts ignored, and Python leaves it at that: tests that
# interrupt themselves would wait for ever. Processes that tests start begin with the handler of the system.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is.
hypothesis_settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("no clock")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes to test in: as many as there is work for, of the CPUs that we may use."""
    return min(cpu_count(), 8)


def pytest_collection_finish() -> None:
    """What libraries made when they were imported stays: the garbage collector need not look through it."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that slow.txt names, with their parameters or without, and those of its fixtures."""
    listed = set(Path(__file__).with_name("slow.txt").read_text(encoding="utf-8").splitlines())
    prefixes = tuple(line[:-1] for line in listed if line.endswith("*"))
    for item in items:
        own = [item.name, getattr(item, "originalname", item.name), *getattr(item, "fixturenames", ())]
        names = [f"{item.path.name}::{name}" for name in own]
        if any(name in listed or name.startswith(prefixes) for name in names):
            item.add_marker(pytest.mark.slow)


MakeRestormer = Callable[..., Restormer]

#: Hyper-parameters of the smallest network that has all there is in one.
TINY_RESTORMER: dict[str, Any] = dict(SUBJECTS["restormer"].tiny)


def shared_folder() -> Path:
    """The folder with real checkpoints and images; skips the test where there is none."""
    folder = os.environ.get("CSA2GLMHA_SHARED")
    if not folder:
        pytest.skip("CSA2GLMHA_SHARED is unset: no folder with real checkpoints and images")
    return Path(folder)


@pytest.fixture(autouse=True)
def _telling() -> Iterator[None]:
    """Remarks are shown as the command line shows them."""
    with telling():
        yield


@pytest.fixture
def shared() -> Path:
    """The folder with real checkpoints and images."""
    return shared_folder()


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs that users met in the field; README.md beside their script says what is right for each."""
    folder = os.environ.get("CSA2GLMHA_SHARED")
    if not folder:
        pytest.skip("CSA2GLMHA_SHARED is unset: no folder with cases from the field")
    made = tmp_path_factory.mktemp("cases")
    script = Path(folder, "cases", "make_cases.py")
    subprocess.run([sys.executable, str(script), str(made)], check=True, capture_output=True)
    return made


def smooth_images(count: int, seed: int = 0, side: int = 32) -> Tensor:
    """Colour images (count, 3, side, side) with nothing finer than four pixels."""
    coarse = torch.rand(count, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(side, side), mode="bilinear")


def batches(images: Tensor, size: int = 2, *shared_inputs: Tensor) -> list[Inputs]:
    """Images (N, C, H, W) as inputs of a network, a few at a time, with what they share."""
    return [(part, *shared_inputs) for part in images.split(size)]


def _tiny_restormer(seed: int = 0, **changes: Any) -> Restormer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Restormer(**(TINY_RESTORMER | changes))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("temperature"):
                    parameter.uniform_(1.0, 4.0)  # sharper than at the start of a training
                elif parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_restormer() -> MakeRestormer:
    """A factory of small Restormers: dim 8, heads 1, 1, 2, 4 (c = 8 and 16), the same weights every time.

    Keywords replace hyper-parameters; ``seed`` decides the weights.
    """
    return _tiny_restormer


@pytest.fixture
def tiny_restormer() -> Restormer:
    """One of them, for colour images."""
    return _tiny_restormer()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of them in a file, with spaces in its name; for all tests, so none may change it."""
    path = tmp_path_factory.mktemp("a folder") / "my model.pth"
    torch.save({"params": _tiny_restormer(norm_bias=False).state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def wide_restormer() -> Restormer:
    """One that is twice as wide, so that there are ranks to choose among; none may change it."""
    return _tiny_restormer(dim=16, norm_bias=False)


@pytest.fixture(scope="session")
def wide_checkpoint(wide_restormer: Restormer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in a file."""
    path = tmp_path_factory.mktemp("a model") / "tiny.pth"
    torch.save(wide_restormer.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three smooth colour images of 70 x 60 pixels; for all tests, so none may change it."""
    folder = tmp_path_factory.mktemp("some photos")
    generator = torch.Generator().manual_seed(0)
    for index in range(3):
        small = torch.rand(1, 3, 9, 11, generator=generator)
        image = F.interpolate(small, (60, 70), mode="bicubic").clamp(0, 1)[0]
        write_image(folder / f"photo {index}.png", image)
    return folder


@contextlib.contextmanager
def few_steps() -> Iterator[None]:
    """Factors are made in a few steps."""
    with pytest.MonkeyPatch.context() as patched:

        def quick(
            kernels: Tensor, offsets: Tensor | None, left: Tensor, right: Tensor, rank: int, iterations: int
        ) -> SeparableFactors:
            return factorize(kernels, offsets, left, right, rank, min(iterations, 5))

        def quick_start(*args: Any, n_iter_max: int, **options: Any) -> Any:
            return parafac(*args, n_iter_max=min(n_iter_max, 5), **options)

        patched.setattr(factors, "factorize", quick)
        patched.setattr("csa2glmha.initialize.factorize.parafac", quick_start)
        yield


@pytest.fixture(scope="module")
def quick_factors() -> Iterator[None]:
    """Factors after a few steps, for tests of everything but how close they are.

    Not where a student is compared with that of another process, which takes all steps.
    """
    with few_steps():
        yield


@contextlib.contextmanager
def without_export() -> Iterator[None]:
    """Conversions without the ONNX export, which takes most of their time and has tests of its own."""
    with pytest.MonkeyPatch.context() as patched:
        exported = replaced(Export(lambda *_, **__: None), CONVERSION_STAGES)
        patched.setattr(convert, "CONVERSION_STAGES", exported)
        yield


@pytest.fixture
def no_export() -> Iterator[None]:
    """Conversions without the ONNX export."""
    with without_export():
        yield


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in for the Hugging Face Hub, with a cache of its own and nobody logged in."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Its own protocol for uploads; Git LFS, which it falls back to, is what the stand-in speaks.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server

"""The processes that train together, by Hugging Face Accelerate; one on its own is the usual case.

Gradients are averaged here, once a step, and not by a wrapper around the network: then stages can train
different parts of it, layer by layer or whole, and what a process saw (loss, a request to stop, a NaN) is
averaged along, so that all of them decide alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast, broadcast_object_list
from torch import Tensor, nn

from csa2glmha.core.errors import UsageError

_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_SHARDED = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)


def launched_processes() -> int:
    """How many processes ``accelerate launch`` or ``torchrun`` started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_device(device: torch.device) -> torch.device:
    """The device of this process: with several of them on GPUs, one GPU each; otherwise as asked for.

    Raises:
        UsageError: there are more processes on this machine than GPUs.
    """
    if launched_processes() == 1 or device.type != "cuda":
        return device
    index, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= there:
        raise UsageError(
            f"process {index + 1} of this machine has no GPU, there are {there}: launch as many as GPUs"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise UsageError for a precision that the device cannot train in."""
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16: needs a GPU; give bf16 or fp32 on a CPU")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError("--precision bf16: this GPU has no bfloat16; give fp16 or fp32")


class Processes:
    """All processes of the training, seen from this one.

    Attributes:
        count: how many there are.
        index: of this one, from 0.
        main: this is the one that writes files.

    Args:
        device: where this one computes.
        precision: "fp32", "bf16" or "fp16".

    Raises:
        UsageError: the precision does not fit the device, or a launcher was told to shard the network.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        check_precision(precision, device)
        if launched_processes() == 1:
            # Accelerate keeps the settings of its first use in a process for good; ours may differ by call.
            AcceleratorState._reset_state(reset_partial_state=True)
        self._accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=_PRECISIONS[precision])
        if self._accelerator.distributed_type in _SHARDED:
            raise UsageError(
                "distillation does not shard networks: launch with --multi_gpu, without DeepSpeed or FSDP"
            )
        self.device = device
        self.count: int = self._accelerator.num_processes
        self.index: int = self._accelerator.process_index
        self.main = self.index == 0

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """Scales the loss in fp16, whose gradients would vanish otherwise."""
        scaler: torch.amp.GradScaler | None = self._accelerator.scaler
        return scaler

    def autocast(self) -> AbstractContextManager[None]:
        """Where networks compute in the precision asked for."""
        context: AbstractContextManager[None] = self._accelerator.autocast()
        return context

    def same_weights(self, model: nn.Module) -> None:
        """Give all processes the weights of the first one."""
        if self.count > 1:
            with torch.no_grad():
                for value in model.state_dict().values():
                    value.copy_(broadcast(value.contiguous()))

    def same(self, value: Any) -> Any:
        """The first process's value."""
        return broadcast_object_list([value])[0] if self.count > 1 else value

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, float64, on the CPU."""
        values = values.double().cpu()
        if self.count == 1:
            return values
        # GPUs of some makers have no float64.
        place = self.device if self.device.type != "mps" else torch.device("cpu")
        total: Tensor = self._accelerator.reduce(values.to(place), "sum")
        return total.cpu()

    def average(self, parameters: Sequence[nn.Parameter], figures: Tensor) -> Tensor:
        """Average the gradients, in place, and some figures of this step, over all processes.

        Args:
            parameters: the same on every process; a gradient that is missing counts as zero.
            figures: (n,) float32.

        Returns:
            The averaged figures (n,), on the CPU.
        """
        if self.count == 1:
            return figures.cpu()
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in parameters
        ]
        parts = [*(gradient.flatten() for gradient in gradients), figures.to(self.device)]
        mean = self._accelerator.reduce(torch.cat(parts), "mean")
        *averaged, figures = mean.split([part.numel() for part in parts])
        for parameter, gradient in zip(parameters, averaged, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return figures.cpu()

    def close(self) -> None:
        """Part from the others; not waiting for them, since one may have failed."""
        self._accelerator.end_training()

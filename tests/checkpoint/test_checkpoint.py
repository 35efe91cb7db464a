from __future__ import annotations

import argparse
import errno
import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from csa2glmha.checkpoint import Checkpoint, read_checkpoint, write_safetensors
from csa2glmha.core.errors import CheckpointError, OutputError
from csa2glmha.core.files import sha256_of

SHARED = os.environ.get("CSA2GLMHA_SHARED")
needs_shared = pytest.mark.skipif(
    not SHARED, reason="CSA2GLMHA_SHARED is unset: no folder with real checkpoints"
)

SUFFIXES = [".pth", ".pt", ".ckpt", ".safetensors"]


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "conv.bias": torch.randn(4, generator=generator),
        "norm.num_batches_tracked": torch.tensor(7),
    }


def saved(tmp_path: Path, content: object, name: str = "model.pth", **kwargs: Any) -> Path:
    path = tmp_path / name
    torch.save(content, path, **kwargs)
    return path


def assert_weights(checkpoint: Checkpoint, expected: dict[str, Tensor] | None = None) -> None:
    expected = weights() if expected is None else expected
    assert list(checkpoint.state_dict) == list(expected)
    for name, tensor in expected.items():
        read = checkpoint.state_dict[name]
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
        assert not read.requires_grad


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# --- formats


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_any_suffix(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = saved(tmp_path, weights(), f"a model{suffix}", _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert_weights(checkpoint)
    assert checkpoint.path == path
    assert checkpoint.sha256 == sha256_of(path)
    assert checkpoint.metadata == {}
    assert checkpoint.wrapper is None
    assert checkpoint.notes == ()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_safetensors_of_any_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a model{suffix}"
    safetensors.torch.save_file(weights(), path, {"rank": "8"})
    checkpoint = read_checkpoint(str(path))
    assert checkpoint.metadata == {"rank": "8"}
    assert checkpoint.wrapper is None
    assert_weights(checkpoint, {name: weights()[name] for name in checkpoint.state_dict})
    assert set(checkpoint.state_dict) == set(weights())


def test_compressed_archive_gives_the_same_weights(tmp_path: Path) -> None:
    path = saved(tmp_path, weights())
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_weights(read_checkpoint(packed))


def test_weights_outlive_and_do_not_touch_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, weights())
    before = path.read_bytes()
    state_dict = read_checkpoint(path).state_dict
    state_dict["conv.bias"].add_(1)
    assert path.read_bytes() == before
    path.write_bytes(bytes(len(before)))
    assert torch.equal(state_dict["conv.weight"], weights()["conv.weight"])


def test_no_warnings(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for zipped in (True, False):
            read_checkpoint(saved(tmp_path, weights(), _use_new_zipfile_serialization=zipped))


def test_parameters_become_plain_tensors(tmp_path: Path) -> None:
    content = {"weight": torch.nn.Parameter(torch.ones(2))}
    assert type(read_checkpoint(saved(tmp_path, content)).state_dict["weight"]) is Tensor


def test_views_become_contiguous(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    read = read_checkpoint(saved(tmp_path, {"t": base.T, "part": base[1]})).state_dict
    assert read["t"].is_contiguous()
    assert torch.equal(read["t"], base.T)
    assert read["part"].untyped_storage().nbytes() == 4 * 4


@pytest.mark.parametrize(
    ("dtype", "note"),
    [
        (torch.float16, "float16 widened"),
        (torch.bfloat16, "bfloat16 widened"),
        (torch.float64, "float64 narrowed"),
    ],
)
def test_other_floats_become_float32(tmp_path: Path, dtype: torch.dtype, note: str) -> None:
    content = {"a": torch.tensor([0.5, -1.25], dtype=dtype), "b": torch.ones(1), "n": torch.tensor([3])}
    checkpoint = read_checkpoint(saved(tmp_path, content))
    assert_weights(checkpoint, {"a": torch.tensor([0.5, -1.25]), "b": torch.ones(1), "n": torch.tensor([3])})
    assert checkpoint.notes == (f"{note} to float32 (1 of 3 tensors)",)


# --- wrappers and prefixes


@pytest.mark.parametrize(
    "wrapper", ["params_ema", "params", "state_dict", "model", "model_state_dict", "net", "net_g"]
)
def test_wrappers(tmp_path: Path, wrapper: str) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"params": [0, 1]}]}
    content: dict[Any, Any] = {
        "epoch": 3,
        "step": torch.tensor(5),
        "optimizer": optimizer,
        wrapper: weights(),
    }
    checkpoint = read_checkpoint(saved(tmp_path, content))
    assert_weights(checkpoint)
    assert checkpoint.wrapper == wrapper
    assert checkpoint.notes == (f"opened '{wrapper}'",)


def test_nested_wrapper(tmp_path: Path) -> None:
    content = {"model": {"state_dict": OrderedDict(weights()), "name": "Restormer"}, "epoch": 1}
    checkpoint = read_checkpoint(saved(tmp_path, content))
    assert_weights(checkpoint)
    assert checkpoint.wrapper == "model.state_dict"


def test_wrapper_without_tensors_is_passed_over(tmp_path: Path) -> None:
    content = {"params": {"dim": 48}, "model": {"blocks": [1, 2]}, "net": weights()}
    checkpoint = read_checkpoint(saved(tmp_path, content))
    assert_weights(checkpoint)
    assert checkpoint.wrapper == "net"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_wrapper_modules_are_no_part_of_names(tmp_path: Path, prefix: str) -> None:
    content = {"state_dict": {prefix + name: tensor for name, tensor in weights().items()}}
    checkpoint = read_checkpoint(saved(tmp_path, content))
    assert_weights(checkpoint)
    assert checkpoint.wrapper == "state_dict"


def test_entries_that_are_no_tensors_are_ignored(tmp_path: Path) -> None:
    content: dict[Any, Any] = {"epoch": 3, **weights(), 5: torch.ones(1), "betas": [0.9, 0.999]}
    checkpoint = read_checkpoint(saved(tmp_path, content))
    assert_weights(checkpoint)
    assert checkpoint.notes == ("3 entries that are no tensors ignored: 'epoch', 5, 'betas'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_objects_of_training_loops_are_passed_over(tmp_path: Path, zipped: bool) -> None:
    history: defaultdict[str, list[float]] = defaultdict(list)
    history["loss"].append(0.5)
    content = {
        "state_dict": defaultdict(float, weights()),
        "args": argparse.Namespace(lr=1e-3, out=Path("runs/1")),
        "psnr": np.float64(31.5),
        "rng": np.random.RandomState(0).get_state(),
        "curve": np.arange(3),
        "history": history,
        "path": PurePosixPath("a").parts,
    }
    checkpoint = read_checkpoint(saved(tmp_path, content, _use_new_zipfile_serialization=zipped))
    assert_weights(checkpoint)
    assert checkpoint.wrapper == "state_dict"


def test_forged_numpy_objects_reach_no_numpy_code(tmp_path: Path) -> None:
    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, ("no such type",)

    checkpoint = read_checkpoint(saved(tmp_path, {"params": weights(), "dtype": Forged()}))
    assert_weights(checkpoint)


def test_allowed_names_do_not_leak(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(saved(tmp_path, weights()))
    assert set(torch.serialization.get_safe_globals()) == before


# --- refusals


class Malicious:
    """Creates the file ``target`` when unpickled."""

    def __init__(self, target: Path, how: Callable[..., object]) -> None:
        self.target = target
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        return self.how, (f"touch {self.target}",) if self.how is os.system else (str(self.target), "w")


@pytest.mark.parametrize("how", [os.system, open], ids=["os.system", "open"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_code_is_refused_and_not_run(
    tmp_path: Path, how: Callable[..., object], protocol: int, container: str, suffix: str
) -> None:
    target = tmp_path / "pwned"
    path = tmp_path / f"evil{suffix}"
    content = {"params": weights(), "x": Malicious(target, how)}
    if container == "pickle":
        path.write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    message = error_of(path)
    assert not target.exists()
    assert "NOT run" in message
    assert "torch.save(model.state_dict(), ...)" in message
    if container != "pickle":
        assert f"{how.__module__}.system" in message if how is os.system else "'io.open'" in message


def test_the_malicious_file_would_have_worked(tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    path = saved(tmp_path, Malicious(target, open))
    torch.load(path, weights_only=False).close()
    assert target.exists()


class Trainer:
    pass


def test_whole_model_objects_are_refused_by_name(tmp_path: Path) -> None:
    message = error_of(saved(tmp_path, {"params": weights(), "trainer": Trainer()}))
    assert "Trainer'" in message
    assert "NOT run" in message


def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "traced.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))
    message = error_of(path)
    assert "TorchScript" in message
    assert "state_dict()" in message


# --- files that are no checkpoints


def test_missing_file_suggests_a_close_name(tmp_path: Path) -> None:
    saved(tmp_path, weights(), "restormer_denoise.pth")
    (tmp_path / "notes.txt").write_text("x")
    message = error_of(tmp_path / "restormer_denoize.pth")
    assert "no such file" in message
    assert "did you mean 'restormer_denoise.pth'?" in message
    assert "notes.txt" not in message
    assert "did you mean" not in error_of(tmp_path / "zzz")


def test_missing_folder(tmp_path: Path) -> None:
    assert f"no folder '{tmp_path / 'gone'}'" in error_of(tmp_path / "gone" / "model.pth")


def test_folder(tmp_path: Path) -> None:
    assert "is a folder" in error_of(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in error_of(tmp_path / "pipe")


def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, weights())

    def denied(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    # Permission bits do not stop the superuser, who may be running this test.
    monkeypatch.setattr(Path, "open", denied)
    message = error_of(path)
    assert os.strerror(errno.EACCES) in message
    assert "may read it" in message


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
ONNX_HEAD = b"\x08\x08\x12\x07pytorch\x1a\x05" + b"2.5.0" + bytes(40)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("data", "what", "advice"),
    [
        (b"", "empty", "download"),
        (LFS_POINTER, "Git LFS pointer", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html lang=en>", "web page", "raw file"),
        (b"<html><body>404</body></html>", "web page", "raw file"),
        (ONNX_HEAD, "ONNX model", "PyTorch or safetensors"),
        (b"\x1f\x8b\x08\x00" + bytes(60), "packed archive", "unpack"),
        (b"PK\x03\x04" + bytes(100), "no complete one", "truncated"),
        (b"PK\x05\x06" + bytes(18), "not a checkpoint: it is empty", "checkpoint file itself"),
    ],
)
def test_not_a_checkpoint_whatever_its_suffix(
    tmp_path: Path, suffix: str, data: bytes, what: str, advice: str
) -> None:
    path = tmp_path / f"my model{suffix}"
    path.write_bytes(data)
    message = error_of(path)
    assert what in message
    assert advice in message


@pytest.mark.parametrize("text", ["Not Found", "Rate limit überschritten\n" * 100, "{'a': 1}"])
def test_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.pth"
    path.write_text(text, encoding="utf-8")
    message = error_of(path)
    assert "text file" in message
    assert text[:9] in message


def test_text_cut_inside_a_character(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_text("a" + "ü" * 600, encoding="utf-8")
    assert "text file" in error_of(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("data", [b"\x08", b"\x08\x07", b"\x80", b"PK", b"{", bytes(8), bytes(9)])
def test_files_of_a_few_bytes(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data)
    error_of(path)


def test_other_binary(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    assert "89 50 4e 47" in error_of(path)


def test_onnx_suffix(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xff\xfe\x00\x01")
    assert "ONNX model" in error_of(path)


def test_real_onnx_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    path = tmp_path / "student.pth"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out])), path)
    assert "ONNX model" in error_of(path)


def test_other_archives(tmp_path: Path) -> None:
    arrays = tmp_path / "arrays.pth"
    with arrays.open("wb") as file:
        np.savez(file, weight=np.ones(3))
    assert "it holds 'weight.npy'" in error_of(arrays)

    packed = tmp_path / "packed.pth"
    with tarfile.open(packed, "w") as archive:
        info = tarfile.TarInfo("model.pth")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert "tar" in error_of(packed)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(weights(), path)
    else:
        torch.save(weights(), path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    message = error_of(path)
    assert "damaged" in message


def test_damaged_header_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 999]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert "broken safetensors" in error_of(path)


def test_flipped_bits_are_noted(tmp_path: Path) -> None:
    path = saved(tmp_path, {"weight": torch.full((64,), 0.5)})
    stored = torch.full((64,), 0.5).numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(stored, bytes(len(stored))))
    checkpoint = read_checkpoint(path)
    assert any("checksum" in note for note in checkpoint.notes)


# --- contents that are no usable weights


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"epoch": 1, "lr": 0.1}, "'epoch', 'lr'"),
        ({}, "empty dict"),
        ([torch.ones(1)], "a list"),
        (torch.ones(1), "a Tensor"),
        (argparse.Namespace(a=1), "a Namespace"),
        ({0: torch.ones(1)}, "keys 0"),
    ],
)
def test_no_state_dict(tmp_path: Path, content: object, held: str) -> None:
    message = error_of(saved(tmp_path, content))
    assert "no state dict" in message
    assert held in message
    assert "params_ema" in message


def test_dict_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content["params"] = content
    assert "no state dict" in error_of(saved(tmp_path, content))


def test_safetensors_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({}, path)
    assert "no state dict" in error_of(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_weights(tmp_path: Path, bad: float) -> None:
    first, second = torch.zeros(2, 5), torch.zeros(3)
    first[1, 2] = first[0, 0] = bad
    second[1] = bad
    message = error_of(saved(tmp_path, {"fine": torch.ones(2), "first": first, "second": second}))
    assert "'first' holds 2 NaN or Inf" in message
    assert "among its 10 values" in message
    assert "(2 of 3 tensors affected)" in message


def test_float64_beyond_float32(tmp_path: Path) -> None:
    message = error_of(saved(tmp_path, {"w": torch.tensor([1e300, 1.0], dtype=torch.float64)}))
    assert "'w' holds 1 NaN or Inf (as float32)" in message


def test_sparse_and_quantized(tmp_path: Path) -> None:
    assert "'w' is quantized, sparse" in error_of(saved(tmp_path, {"w": torch.eye(3).to_sparse()}))


# --- writing


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a student.safetensors"
    write_safetensors(path, weights(), {"rank": "8", "teacher": "Ä"})
    checkpoint = read_checkpoint(path)
    assert checkpoint.metadata == {"rank": "8", "teacher": "Ä"}
    assert {name: tensor.dtype for name, tensor in checkpoint.state_dict.items()} == {
        name: tensor.dtype for name, tensor in weights().items()
    }
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in weights().items())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_shared_views_and_parameters_are_written_in_full(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "same": base,
        "row": base[1],
        "turned": base.T,
        "repeated": base[:1].expand(5, 4),
        "parameter": torch.nn.Parameter(base),
        "none": torch.zeros(0),
        "none too": torch.zeros(0, 3),
    }
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors, {})
    read = read_checkpoint(path).state_dict
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_writing_fails_in_one_line_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")

    def full(self: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="free some space"):
        write_safetensors(path, weights(), {})
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


# --- real files


@needs_shared
@pytest.mark.parametrize(
    ("name", "wrapper", "parameters", "first"),
    [
        ("checkpoints/mst_s.pth", None, 922_648, "embedding.weight"),
        ("checkpoints/restormer_d24_denoise25.pth", "params", None, "patch_embed.proj.weight"),
        ("parity/mstpp_stage1.pth", "state_dict", None, "conv_in.weight"),
        ("parity/restormer_biasfree.pth", "params", None, "patch_embed.proj.weight"),
        ("parity/restormer_withbias.pth", "params", None, "patch_embed.proj.weight"),
    ],
)
def test_real_checkpoints(name: str, wrapper: str | None, parameters: int | None, first: str) -> None:
    checkpoint = read_checkpoint(Path(SHARED or "") / name)
    assert checkpoint.wrapper == wrapper
    assert first in checkpoint.state_dict
    assert not any(key.startswith("module.") for key in checkpoint.state_dict)
    assert all(tensor.dtype == torch.float32 for tensor in checkpoint.state_dict.values())
    if parameters:
        assert sum(tensor.numel() for tensor in checkpoint.state_dict.values()) == parameters


@needs_shared
def test_sha256_of_the_published_file() -> None:
    checkpoint = read_checkpoint(Path(SHARED or "") / "checkpoints" / "mst_s.pth")
    assert checkpoint.sha256 == "251b725f67153e09c9487ad2d72ef4bd45980fd5ac37e68ee51bb06bde997e11"

"""Pickles of every protocol are read, and none is run."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from csa2glmha.checkpoint import pickles, read_checkpoint
from csa2glmha.checkpoint.pickles import rewrite
from csa2glmha.core.errors import CheckpointError

PROTOCOLS = [0, 1, 3, 4, 5]
STATE = {
    "conv.weight": torch.arange(12.0).reshape(3, 4),
    "conv.bias": torch.tensor([0.5], dtype=torch.float16),
}


def assert_state(path: Path) -> None:
    found = read_checkpoint(path).state_dict
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in STATE.items()
    }


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_checkpoint_of_any_protocol(tmp_path: Path, protocol: int, zipped: bool) -> None:
    history: defaultdict[str, list[float]] = defaultdict(list, loss=[0.5])
    content = {
        "state_dict": OrderedDict(STATE),
        "optimizer": {"state": {i: {"exp_avg": torch.ones(2)} for i in range(300)}},
        "args": argparse.Namespace(lr=1e-3, out=Path("runs/1"), names=["a", "b"]),
        "flags": {"a", "b"},
        "frozen": frozenset({1, 2}),
        "bytes": b"\x00\xff",
        "array": bytearray(b"abc"),
        "rng": np.random.RandomState(0).get_state(),
        "curve": np.arange(3),
        "psnr": np.float64(31.5),
        "big": 1 << 70,
        "history": history,
        "parts": PurePosixPath("a").parts,
        "text": "ünïcode " * 100,
    }
    path = tmp_path / "model.pth"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert_state(path)


def test_a_compressed_archive_of_protocol_4(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth", pickle_protocol=4)
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_state(tmp_path / "b.pth")


class Caller:
    """Calls a function when unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_run_and_the_object_is_named(tmp_path: Path, protocol: int, zipped: bool) -> None:
    target, path = tmp_path / "pwned", tmp_path / "evil.pth"
    evil = [Caller(os.system, f"touch {target}"), Caller(open, str(target), "w")]
    for each, name in zip(evil, (f"{os.system.__module__}.system", "io.open"), strict=True):
        content = {"params": STATE, "x": each}
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=rf"the object '{name}'.*NOT run"):
            read_checkpoint(path)
    assert not target.exists()


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain, st.sampled_from(PROTOCOLS))
def test_a_rewritten_pickle_says_the_same(value: object, protocol: int) -> None:
    data = rewrite(io.BytesIO(pickle.dumps([value, value], protocol)))
    assert pickle.loads(data) == [value, value]
    known = {opcode.name for opcode, *_ in pickletools.genops(data)}
    assert not known & {"STACK_GLOBAL", "MEMOIZE", "FRAME", "SHORT_BINUNICODE", "SHORT_BINBYTES"}


def test_names_of_globals_are_looked_up_again(tmp_path: Path) -> None:
    # The name of the module is pushed once; every further global looks it up in the memo.
    shared = "collections"
    value = [OrderedDict(a=1), shared, OrderedDict(b=2), shared, defaultdict(int), shared, "OrderedDict"]
    for protocol in (4, 5):
        assert pickle.loads(rewrite(io.BytesIO(pickle.dumps(value, protocol)))) == value


FORGED: dict[str, bytes] = {
    "a name of two lines": b"\x80\x04\x8c\x0fbuiltins\nexec\nx\x8c\x01y\x93.",
    "a name that is no text": b"\x80\x04K\x01K\x02\x93.",
    "a name from a list": b"\x80\x04]\x8c\x04exec\x93.",
    "no names at all": b"\x80\x04\x93.",
    "one name and a mark": b"\x80\x04\x8c\x02os(\x8c\x06system\x93.",
    "an unknown opcode": b"\x80\x04\xff.",
    "a frame without end": b"\x80\x04\x95" + b"\xff" * 8,
    "a text longer than the file": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f",
    "no end": b"\x80\x04K\x01",
    "out of band": b"\x80\x05\x97.",
    "memo beyond all numbers": b"\x80\x04K\x01p99999999999999\n.",
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED)
def test_forged_pickles_end_in_one_line(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        rewrite(io.BytesIO(data))
    path = tmp_path / "model.pth"
    torch.save(STATE, path, pickle_protocol=4)
    with zipfile.ZipFile(path) as source:
        records = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, record in records.items():
            target.writestr(name, data if name.endswith("data.pkl") else record)
    with pytest.raises(CheckpointError, match="NOT run") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_protocol_2_is_left_as_it_is(tmp_path: Path) -> None:
    for zipped, rewritten in ((True, pickles.rewritten_archive), (False, pickles.rewritten_legacy)):
        path = tmp_path / "model.pth"
        torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
        assert rewritten(path) is None

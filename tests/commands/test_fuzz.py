"""Files and options that nobody would write: each is used or refused in words, and nothing else happens.

Some three thousand inputs, the same ones every time, take less than a minute; CSA2GLMHA_FUZZ=5000 gives
every test as many new ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import click
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from csa2glmha.checkpoint.student import load_model, student_metadata
from csa2glmha.cli import cli
from csa2glmha.commands import convert as pipeline
from csa2glmha.config.options import ConvertOptions, make_options, read_recipe
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.ending import run_safely
from csa2glmha.core.errors import UsageError
from csa2glmha.families.registry import build
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers, replace_layers
from tests.conftest import TINY_RESTORMER
from tests.fuzzing import (
    INTEGERS,
    JSON,
    NUMBERS,
    SCALARS,
    TEXT,
    accepts_or_refuses,
    confined,
    damaged,
    folder_with,
    inputs,
)
from tests.fuzzing import hangs_are_told as hangs_are_told

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def small_network() -> RestorationModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build("restormer", TINY_RESTORMER | {"dim": 4, "heads": [1, 1, 1, 1]}).eval()


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


TEACHER = small_network().state_dict()
STUDENT = small_network()
replace_layers(STUDENT, plan_layers(attention_layers(STUDENT), Ranks(k=2, v=2)))
METADATA = student_metadata(STUDENT, "0" * 64, 0, {"ranks": "2"})
FILES = {
    "zip": saved({"params": TEACHER}),
    "plain zip": saved(TEACHER, pickle_protocol=4),
    "legacy": saved({"state_dict": TEACHER, "epoch": 3}, _use_new_zipfile_serialization=False),
    "safetensors": safetensors.torch.save(TEACHER),
    "student": safetensors.torch.save(STUDENT.state_dict(), METADATA),
}


def opens_or_refuses(data: bytes, suffix: str = "pth", weights: str | None = None) -> None:
    with folder_with(**{f"model_{suffix}": data}) as folder, confined(folder):
        found = accepts_or_refuses(lambda: load_model(folder / f"model.{suffix}", weights))
    assert found is None or isinstance(found.model, RestorationModel)


# --- checkpoints


@inputs(150)
@given(
    st.sampled_from(list(FILES)).flatmap(lambda kind: damaged(FILES[kind])),
    st.sampled_from(["pth", "safetensors"]),
)
def test_damaged_checkpoints(data: bytes, suffix: str) -> None:
    opens_or_refuses(data, suffix)


DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64,
    torch.bool, torch.complex64, torch.float8_e4m3fn,
)  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Small ones of all types; some are views of one number, sparse, quantised or without data."""
    shape = draw(st.lists(st.integers(0, 5), max_size=5))
    tensor = torch.zeros(shape).to(draw(st.sampled_from(DTYPES)))
    kind = draw(st.sampled_from(["plain", "plain", "expanded", "sparse", "quantised", "meta", "nan"]))
    if kind == "expanded":
        return torch.zeros(1).expand(draw(st.sampled_from([3, 10**6, 10**12])), *shape)
    if kind == "sparse":
        return torch.zeros(shape or [1]).to_sparse()
    if kind == "quantised":
        return torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8)
    if kind == "meta":
        return torch.zeros(shape, device="meta")
    return torch.full(shape, torch.nan) if kind == "nan" else tensor


PREFIXES = st.sampled_from(
    ["", "module.", "net.", "model.", "generator.0.", "_orig_mod.", "a.b.c.", ".", "x"]
)
KEYS = st.one_of(
    st.sampled_from(["params", "params_ema", "state_dict", "net", "ema", "optimizer", "0", "weight"]),
    st.sampled_from(list(TEACHER)),
    st.tuples(PREFIXES, TEXT).map("".join),
    st.integers(-2, 99).map(lambda number: f"encoder_level1.{number * 10**6}.attn.qkv.weight"),
)


@st.composite
def changed_networks(draw: st.DrawFn) -> dict[str, Any]:
    """The weights of a network, under a prefix, some of them missing, of other names or something else."""
    weights: dict[Any, Any] = dict(TEACHER)
    for name in draw(st.lists(st.sampled_from(list(TEACHER)), max_size=3, unique=True)):
        change = draw(st.sampled_from(["gone", "renamed", "other", "twice"]))
        value = weights.pop(name)
        if change == "renamed":
            weights[draw(KEYS)] = value
        elif change == "other":
            weights[name] = draw(st.one_of(tensors(), SCALARS))
        elif change == "twice":
            weights |= {name: value, f"module.{name}": value}
    prefix = draw(PREFIXES)
    return {f"{prefix}{name}": value for name, value in weights.items()}


NESTED = st.recursive(
    st.one_of(tensors(), SCALARS, changed_networks()),
    lambda inner: st.one_of(
        st.dictionaries(st.one_of(KEYS, st.integers()), inner, max_size=4),
        st.lists(inner, max_size=3),
        st.tuples(inner),
    ),
    max_leaves=6,
)


@inputs(150)
@given(NESTED, st.booleans(), st.one_of(st.none(), st.sampled_from(["params", ".", "state_dict.net", ""])))
def test_made_up_checkpoints(content: Any, new: bool, weights: str | None) -> None:
    try:
        data = saved(content, _use_new_zipfile_serialization=new)
    except (UnicodeEncodeError, NotImplementedError, RuntimeError):
        return  # what torch.save cannot write, nobody has
    opens_or_refuses(data, weights=weights)


class Harm:
    """Runs what it is given when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


HARM = [
    Harm(print, "run"),
    Harm(eval, "1"),
    Harm(__import__, "this"),
    Harm(getattr, torch.Tensor, "numpy"),
    Harm(bytearray, 10**12),
    Harm(torch.Tensor.expand, torch.zeros(1), 10**12),
    Harm(open, "made", "w"),
]  # fmt: skip
OPCODES = [
    bytes([code])
    for code in b"()0123NRKMJQUX]}abcdeghijlopqrstu\x80\x81\x85\x86\x87\x88\x89\x8c\x8f\x93\x94."
]
STREAM = st.lists(
    st.one_of(
        st.sampled_from(OPCODES),
        st.binary(max_size=4),
        st.sampled_from([
            b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ccollections\nOrderedDict\n", b"X\x02\x00\x00\x00id", b"K\x01", b"J\xff\xff\xff\x7f",
            b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f",
            b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
        ]),
    ),
    max_size=30,
).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")  # fmt: skip


def archive(data: bytes, packed: bool = False, **more: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as written:
        for name, content in {"data.pkl": data, "version": b"3\n", "byteorder": b"little", **more}.items():
            written.writestr(f"archive/{name}", content)
    return file.getvalue()


@inputs(150)
@given(
    st.one_of(
        STREAM,
        st.tuples(st.sampled_from(HARM), st.integers(0, 4)).map(
            lambda given: pickle.dumps({"params": {"a": given[0]}}, protocol=given[1])
        ),
        damaged(pickle.dumps({"state_dict": {"a.weight": [1.5, "x"], "b": (None, True)}}, protocol=2)),
    ),
    st.booleans(),
    st.booleans(),
)
def test_hostile_pickles(stream: bytes, packed: bool, alone: bool) -> None:
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    opens_or_refuses(legacy + stream if alone else archive(stream, packed))


OFFSETS = st.one_of(st.tuples(st.just(0), st.sampled_from([0, 4, 8, 16])), st.tuples(INTEGERS, INTEGERS))
ENTRIES = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3"]), TEXT),
            "shape": st.lists(st.one_of(st.integers(0, 4), INTEGERS), max_size=4),
            "data_offsets": OFFSETS,
        }
    ),
    JSON,
)
HEADERS = st.one_of(
    st.dictionaries(KEYS, ENTRIES, max_size=4),
    st.fixed_dictionaries({"__metadata__": JSON}),
    st.fixed_dictionaries({"__metadata__": st.just(METADATA)}),
    JSON,
)


@inputs(100)
@given(HEADERS, st.sampled_from([0, -1, 1, 2**20, 2**40]), st.integers(0, 64), st.sampled_from([0, 20_000]))
def test_safetensors_headers(header: Any, wrong_by: int, size: int, depth: int) -> None:
    text = json.dumps(header).encode("utf-8")
    if depth:
        text = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    length = struct.pack("<Q", max(len(text) + wrong_by, 0))
    opens_or_refuses(length + text + bytes(size), "safetensors")


@st.composite
def changed_json(draw: st.DrawFn, text: str) -> str:
    """JSON with one value in it replaced, or something else altogether."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.one_of(TEXT, JSON.map(json.dumps))).encode("utf-8", "replace").decode()
    value = json.loads(text)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        if draw(st.integers(0, 5)) == 0:
            del place[key]
        else:
            place[key] = draw(JSON)
        return json.dumps(value)


@inputs(200)
@given(
    st.sampled_from(["hyperparameters", "layers"]).flatmap(
        lambda name: changed_json(METADATA[name]).map(lambda text: {name: text})
    )
    | st.sampled_from(list(METADATA)).flatmap(
        lambda name: st.one_of(TEXT, JSON.map(json.dumps)).map(lambda text: {name: text})
    )
)
def test_student_metadata(changes: dict[str, str]) -> None:
    try:
        data = safetensors.torch.save(STUDENT.state_dict(), METADATA | changes)
    except UnicodeEncodeError:
        return
    opens_or_refuses(data, "safetensors")


# --- recipes and options

NAMES = st.sampled_from(list(ConvertOptions.model_fields))
YAML = st.one_of(
    st.dictionaries(st.one_of(NAMES, NAMES, TEXT), JSON, max_size=4).map(lambda value: yaml.safe_dump(value)),
    st.tuples(NAMES, st.sampled_from([
        "!!python/object/apply:os.system [ls]", "!!binary aGk=", "2026-13-45", "1:2:3", "0o9", "&a [*a]",
        "*b", ".nan", ".inf", "- 1", "{", "[", "|", "? ", "!!set {}", "!!timestamp x", "1" * 5000,
        "0x", "0b", "\t",
        "&x [1, &y [2]]", "'", "%TAG", "---\n...\n---",
    ])).map(lambda pair: f"{pair[0]}: {pair[1]}\n"),
    st.text(max_size=60),
    st.integers(1, 3000).map(lambda depth: "rank: " + "[" * depth),
    st.integers(1, 3000).map(lambda depth: "".join(f"{' ' * level}a:\n" for level in range(depth))),
).map(lambda text: text.encode("utf-8", "surrogatepass"))  # fmt: skip


@inputs(200)
@given(st.one_of(YAML, YAML.flatmap(damaged), st.binary(max_size=60)))
def test_recipes(text: bytes) -> None:
    with folder_with(recipe_yaml=text) as folder, confined(folder):
        values = accepts_or_refuses(lambda: read_recipe(folder / "recipe.yaml"))
        if values is not None:
            accepts_or_refuses(lambda: make_options(**values))


# As a system can pass them on: no NUL, and no halves of characters.
VALUES = st.one_of(
    SCALARS.map(str),
    st.sampled_from([
        "cpu", "cuda", "cuda:99", "mps", "noise:25", "noise:nan", "noise:", "blur:1-2+noise:5", "blur:1e9",
        "motion:-1", "jpeg:40+", "110G", "0.5", "0.75M", "1e-400", "fp16", "int8", "layers", "l2", "4,8",
        "auto:0.5", "4,auto:max-drop=nan", "global", "mat", "stub", "folder", "stub/x", "folder/../folder",
        "no such", "*=*", "{}", "%s", "--", "-o", "@stub", "hf://", "hf://a", "hf://../..",
    ]),
).map(lambda value: value.replace("\0", "").encode("utf-8", "ignore").decode())  # fmt: skip
COMMANDS = list(cli.commands)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command on a file that is no model, with any values for any of its options."""
    name = draw(st.sampled_from(COMMANDS))
    line = [name]
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Argument):
            line += ["stub"] * (draw(st.integers(0, 2)) if draw(st.integers(0, 9)) == 0 else 1)
            if parameter.name == "images":
                line.append("folder")
            continue
        assert isinstance(parameter, click.Option)
        needed = parameter.required and draw(st.integers(0, 9)) > 0
        if parameter.name != "help" and (needed or draw(st.integers(0, 5)) == 0):
            line.append(draw(st.sampled_from(parameter.opts)))
            line += [] if parameter.is_flag else [draw(VALUES)]
    return line


def ends_in_one_line(arguments: list[str]) -> tuple[int, str]:
    """The exit code of a command and what it printed for scripts."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_safely(lambda: cli.main(arguments, "csa2glmha", standalone_mode=False))
    said = err.getvalue()
    assert code in (0, 1, 2), said
    complaints = [line for line in said.split("\n") if line.startswith("csa2glmha: ")]
    assert len(complaints) == (code != 0), said
    assert "Traceback" not in said and "should not happen" not in said, said
    return code, out.getvalue()


@inputs(300)
@given(command_lines())
def test_options_of_all_commands(line: list[str]) -> None:
    def not_now(*_: Any, **__: Any) -> Any:
        raise UsageError("the demonstration is not run here")

    with folder_with(stub=b"no model") as folder, pytest.MonkeyPatch.context() as patch:
        (folder / "folder").mkdir()
        patch.chdir(folder)
        patch.setattr(pipeline, "run_conversion", not_now) if line[0] == "demo" else None
        with confined(folder):
            code, out = ends_in_one_line(line)
        assert code and not out, line
        assert {path.name for path in folder.iterdir()} == {"stub", "folder"}


@inputs(50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["--rank", "--rank-q", "--rank-k", "--rank-v", "--rank-pos", "--macs", "--input-size"]
            ),
            st.one_of(NUMBERS.map(str), st.sampled_from(["full", "auto", "0.9", "2"]), VALUES),
        ),
        max_size=3,
    )
)
def test_inspecting_with_any_ranks(given: list[tuple[str, str]]) -> None:
    with folder_with(model_pth=FILES["zip"]) as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with confined(folder):
            code, out = ends_in_one_line(["inspect", "model.pth", *(word for pair in given for word in pair)])
        assert bool(out) == (code == 0)


def test_the_tests_notice_what_is_wrong(tmp_path: Path) -> None:
    """What the others rely on: that a file, a process or a pickle would be noticed."""
    # At the root: a clone of this project may itself lie in a temporary folder, where writing is allowed.
    outside = Path(tmp_path.anchor, "made-by-a-test")
    for deed in (
        lambda: (tmp_path / "made").write_text("x"),
        lambda: outside.write_text("x"),
        lambda: pickle.loads(b"cbuiltins\neval\n."),
    ):
        with pytest.raises(AssertionError), confined(tmp_path), contextlib.suppress(PermissionError):
            deed()
    assert not outside.exists()

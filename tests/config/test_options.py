from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from csa2glmha.config.options import ConvertOptions, make_options, read_recipe
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import UsageError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message_of(caught: pytest.ExceptionInfo[UsageError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- values


def test_defaults() -> None:
    options = make_options()
    assert options.ranks == Ranks(None, 8, 8)
    assert (options.attention, options.distill, options.seed) == ("expanded", True, 0)
    assert options.data is None and options.degrade is None


def test_widths_of_options() -> None:
    shares = [make_options(ffn=each).ffn_share for each in ("full", " Full", 1, 0.75, "0.5")]
    assert shares == [1, 1, 1, 0.75, 0.5]
    with pytest.raises(UsageError, match="--rank auto chooses the widths, too"):
        make_options(rank="auto", macs=0.5, ffn=0.5)


def test_ranks_of_options() -> None:
    assert make_options(rank="full", rank_q="16").ranks == Ranks(16, None, None)
    assert make_options(rank="12", rank_v=4).ranks == Ranks(None, 12, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0),
        ("rank", -1),
        ("rank", 8.5),
        ("rank", "abc"),
        ("rank", float("nan")),
        ("rank", None),
        ("rank", True),
        ("rank", [8]),
        ("rank_q", "8.5"),
        ("ffn", 0),
        ("ffn", 1.5),
        ("ffn", "half"),
        ("ffn", float("nan")),
        ("ffn", True),
        ("ffn", [0.5]),
        ("rank_k", -1),
        ("rank_v", "-3"),
        ("attention", "sparse"),
        ("calibration_crops", 1),
        ("calibration_size", 15),
        ("distill_steps", -1),
        ("distill_minutes", 0),
        ("distill_minutes", float("inf")),
        ("distill_minutes", float("nan")),
        ("batch", 0),
        ("batch", 2.5),
        ("crop", 8),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-4),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", "fast"),
        ("input_size", 0),
        ("input_size", 10**6),
        ("seed", -1),
        ("seed", 2**31),
        ("distill", "perhaps"),
        ("data", 5),
        ("latency", -3),
        ("latency", float("nan")),
        ("latency", float("inf")),
        ("max_drop", float("nan")),
        ("macs", float("inf")),
        ("truth_weight", float("nan")),
        ("state_minutes", float("inf")),
        ("batch", 10**20),
        ("distill_steps", 10**20),
        ("rank", 10**20),
        ("rank_q", 10**20),
    ],
)
def test_bad_values_name_option_and_value(name: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        make_options(**{name: value})
    message = message_of(caught)
    assert message.startswith(f"--{name.replace('_', '-')} {value}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("calibration_crops", 2), ("distill_steps", 0), ("seed", 2**31 - 1), ("input_size", 8), ("crop", 16)],
)
def test_limits_are_allowed(name: str, value: int) -> None:
    assert getattr(make_options(**{name: value}), name) == value


@pytest.mark.parametrize(
    "values",
    [
        {"rank": "auto", "macs": "1e999"},
        {"rank": "auto", "params": "1e300T"},
        {"rank": 10**5000},
        {"rank": "9" * 400},
        {"rank": "9" * 5000},
        {"batch": "9" * 5000},
        {"seed": 10**5000},
        {"distill_minutes": "1e999"},
        {"data": "a\0b"},
    ],
)
def test_numbers_beyond_all_arithmetic_and_paths_that_are_none(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        make_options(**values)
    assert len(message_of(caught)) < 250


def test_a_budget_of_time_says_its_range() -> None:
    with pytest.raises(UsageError, match="--latency -3: input should be greater than 0"):
        make_options(latency=-3)
    assert make_options(latency=False).timing is False
    assert make_options(rank="auto", latency=0.5).latency == 0.5


def test_unknown_option_is_named() -> None:
    with pytest.raises(UsageError, match="unknown option 'ranks'; known: rank, macs") as caught:
        make_options(ranks=8)
    message_of(caught)


def test_options_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_options().rank = 4  # type: ignore[misc]


# --- relations


def test_targets_need_data() -> None:
    with pytest.raises(UsageError, match="--targets needs --data"):
        make_options(targets="clean")


def test_targets_exclude_degradation() -> None:
    with pytest.raises(UsageError, match="--targets and --degrade exclude each other"):
        make_options(data="noisy", targets="clean", degrade="noise:25")
    assert make_options(data="noisy", targets="clean").targets == Path("clean")
    assert make_options(data="clean", degrade="noise:25").degrade == "noise:25"


# --- recipes


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_project_are_valid(path: Path) -> None:
    content = read_recipe(path)
    assert content
    options = make_options(**content)
    assert content == {name: getattr(options, name) for name in content}  # nothing is reinterpreted


def test_a_recipe_can_hold_every_option(tmp_path: Path) -> None:
    everything = make_options(data="a", degrade="noise:25", output="b", rank_q=4, rank_k=5, rank_v=6)
    text = yaml.safe_dump(everything.model_dump(mode="json"))
    assert make_options(**read_recipe(recipe(tmp_path, text))) == everything
    assert set(yaml.safe_load(text)) == set(ConvertOptions.model_fields)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_recipe_sets_nothing(tmp_path: Path, text: str) -> None:
    assert read_recipe(recipe(tmp_path, text)) == {}


def test_unknown_key_of_a_recipe(tmp_path: Path) -> None:
    path = recipe(tmp_path, "rank: 8\nlearningrate: 1e-4\n")
    with pytest.raises(UsageError, match="unknown option 'learningrate'; known: rank") as caught:
        read_recipe(path)
    assert str(path) in message_of(caught)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch: 0", "--batch 0: "),
        ("rank: 8.5", "--rank 8.5: "),
        ("crop: large", "--crop large: "),
        ("rank: [8", "not valid YAML in line 1"),
        ("rank: 8\n  batch: 4", "not valid YAML in line 2"),
        ("- rank\n- 8", "found a list"),
        ("rank 8", "found a str"),
        ("8: rank", "unknown option '8'"),
        ("rank: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("rank: 2001-99-99", "not valid YAML"),
        ("rank: \x00", "not valid YAML"),
        ("rank: !!timestamp x", "not valid YAML"),
        ('rank: !!int ""', "not valid YAML"),
        ("\trank: 8", "not valid YAML in line 1 (found character '\\t'"),
        ("rank: " + "[" * 50_000, "nested too deeply"),
        ("- " * 50_000, "nested too deeply"),
        ("rank: &a [1]\nbatch: *a", "aliases are of no use"),
        ("rank: 8\nbatch: 1\nrank: 4", "line 3 ('rank' is there twice, first in line 1)"),
        ("rank: 0x" + "f" * 50_000, "--rank a number of thousands of digits"),
        ("rank: " + "9" * 50_000, "not valid YAML"),
        ("# " + "x" * (1 << 20), "larger than any recipe"),
        ("latency: -3", "--latency -3: input should be greater than 0"),
        ("latency: .nan", "--latency nan: "),
        ("distill_minutes: .inf", "--distill-minutes inf: "),
        ('data: "a\\0b"', "a path has no NUL"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, expected: str) -> None:
    path = recipe(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_recipe(path)
    message = message_of(caught)
    assert message.startswith(f"recipe {path}: ")
    assert expected in message
    assert len(message) < 900 + len(str(path))  # the known options are named


def test_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="directory"):
        read_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("# Größe\nrank: 8\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"not valid YAML \(not UTF-8\)"):
        read_recipe(tmp_path / "latin.yaml")

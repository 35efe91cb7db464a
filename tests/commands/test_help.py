"""What `--help` shows, and what a typo is answered with."""

from __future__ import annotations

import shlex

import click
import pytest
from click.testing import CliRunner

from csa2glmha.cli import cli
from csa2glmha.core.ending import run_safely
from csa2glmha.help import COMMANDS, EXAMPLES, GROUPS

OTHERS = {"device", "seed", "recipe", "weights"}


def test_every_command_has_a_place_and_examples() -> None:
    grouped = {name for names in COMMANDS.values() for name in names}
    assert set(cli.commands) <= grouped
    assert set(cli.commands) <= set(EXAMPLES)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_has_a_group(name: str) -> None:
    known = {option for names in GROUPS.values() for option in names} | OTHERS
    options = {each.name for each in cli.commands[name].params if isinstance(each, click.Option)}
    assert options <= known


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_help_lists_every_option_once_and_ends_with_whole_examples(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"]).output
    words = shown.split()
    for option in cli.commands[name].params:
        if isinstance(option, click.Option):
            flag = max(option.opts, key=len)
            assert any(line.strip().startswith((flag, f"-o, {flag}")) for line in shown.splitlines()), flag
    assert "Examples:" in words
    for example in EXAMPLES[name]:
        assert f"  {example}\n" in shown


def test_groups_stand_in_their_order() -> None:
    shown = CliRunner().invoke(cli, ["convert", "--help"]).output
    titles = [
        "Ranks and widths",
        "Data",
        "Distillation",
        "Export and timing",
        "Output",
        "Other options",
        "Examples",
    ]
    places = [shown.index(f"\n{title}:\n") for title in titles]
    assert places == sorted(places)


def test_the_same_name_has_the_place_of_its_meaning() -> None:
    converting = CliRunner().invoke(cli, ["convert", "--help"]).output
    exporting = CliRunner().invoke(cli, ["export", "--help"]).output
    assert converting.index("Distillation:") < converting.index("--precision") < converting.index("Export")
    assert exporting.index("Export and timing:") < exporting.index("--precision")


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["conver", "x.pth"], "did you mean 'convert'?"),
        (["benhc"], "did you mean 'bench'?"),
        (["zzz"], "known: "),
    ],
)
def test_a_mistyped_command_is_answered_with_the_nearest(typed: list[str], answer: str) -> None:
    result = CliRunner().invoke(cli, typed)
    assert result.exit_code == 2
    assert answer in result.output


def test_no_command_at_all_shows_the_help_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_safely(lambda: cli.main([], prog_name="csa2glmha", standalone_mode=False)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    # Lines may break elsewhere: a terminal leaves its last two columns free.
    assert err.split() == CliRunner().invoke(cli, ["--help"], prog_name="csa2glmha").output.split()
    assert len(err.splitlines()) > 15
    assert err.startswith("Usage: csa2glmha [OPTIONS] COMMAND [ARGS]...\n\n")


def test_a_mistyped_option_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(cli, ["convert", "x.pth", "--distill-minute", "3"])
    assert result.exit_code == 2
    assert "--distill-minutes" in result.output


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_parse(name: str) -> None:
    if name not in cli.commands:
        pytest.skip(f"{name} is not there")
    for example in EXAMPLES[name]:
        program, command, *arguments = shlex.split(example)
        assert (program, command) == ("csa2glmha", name)
        cli.commands[name].make_context(name, arguments)


def test_completion_offers_the_commands() -> None:
    environment = {
        "_CSA2GLMHA_COMPLETE": "bash_complete",
        "COMP_WORDS": "csa2glmha co",
        "COMP_CWORD": "1",
    }
    result = CliRunner().invoke(cli, [], prog_name="csa2glmha", env=environment)
    assert "plain,convert" in result.output

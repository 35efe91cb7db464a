"""The command line: parse, call, print."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from csa2glmha import __version__
from csa2glmha.errors import Csa2GlmhaError

Command = TypeVar("Command", bound=Callable[..., Any])
EXISTING = click.Path(path_type=Path)
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="csa2glmha")
def cli() -> None:
    """Make trained channel-attention image models smaller and faster.

    A Restormer checkpoint goes in; out come a compressed student whose channel attention is guided and
    low-rank (GLMHA), a checked ONNX file, and a report of what was saved and what it cost.
    """


def data_options(command: Command) -> Command:
    """--data, --targets and --degrade, as every command that looks at images has them."""
    for option in (
        click.option(
            "--degrade", metavar="SPEC", help="Degrade clean images: noise:25, blur:1-2+noise:5, ..."
        ),
        click.option("--targets", type=EXISTING, metavar="DIR", help="Ground truth, paired by file name."),
        click.option("--data", type=EXISTING, metavar="DIR", help="Folder of images."),
    ):
        command = option(command)
    return command


def run_options(command: Command) -> Command:
    """--device and --seed."""
    for option in (
        click.option("--seed", type=int, default=0, show_default=True, help="Of everything random."),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="auto (a GPU when there is one), cpu, cuda, mps.",
        ),
    ):
        command = option(command)
    return command


def training_options(command: Command) -> Command:
    """How long and how to distil."""
    for option in (
        click.option(
            "--learning-rate", type=float, default=1e-4, show_default=True, help="Peak rate of distillation."
        ),
        click.option("--crop", type=int, default=96, show_default=True, help="Side of training crops."),
        click.option("--batch", type=int, default=4, show_default=True, help="Crops per step."),
        click.option(
            "--distill-minutes",
            type=float,
            default=6.0,
            show_default=True,
            metavar="M",
            help="Time for distillation when no steps are given.",
        ),
        click.option("--distill-steps", type=int, metavar="N", help="Distillation steps."),
    ):
        command = option(command)
    return command


@cli.command(context_settings=CONTEXT)
@click.argument("checkpoint", type=EXISTING)
@click.option("--rank", default="8", show_default=True, help="Rank per head of keys and values, or full.")
@click.option("--rank-q", help="Rank of queries; full unless given.")
@click.option("--rank-k", help="Rank of keys, instead of --rank.")
@click.option("--rank-v", help="Rank of values, instead of --rank.")
@click.option(
    "--attention",
    type=click.Choice(["expanded", "compact"]),
    default="expanded",
    show_default=True,
    help="Softmax over the expanded logits, or over the r keys as in the paper.",
)
@data_options
@click.option(
    "--calibration-crops", type=int, default=32, show_default=True, help="Crops for attention statistics."
)
@click.option("--calibration-size", type=int, default=128, show_default=True, help="Their side in pixels.")
@training_options
@click.option("--no-distill", is_flag=True, help="Stop at the initialisation.")
@click.option(
    "--input-size",
    type=int,
    default=256,
    show_default=True,
    help="Image side for MACs, latency and quality.",
)
@click.option("--no-latency", is_flag=True, help="Do not time the ONNX models.")
@run_options
@click.option("--recipe", type=EXISTING, metavar="FILE", help="YAML file that sets any of these options.")
@click.option("-o", "--output", type=EXISTING, metavar="DIR", help="Output folder [CHECKPOINT-rankR].")
@click.option("--overwrite", is_flag=True, help="Replace existing results.")
@click.pass_context
def convert(context: click.Context, checkpoint: Path, recipe: Path | None, **given: Any) -> None:
    """Compress CHECKPOINT and write student, ONNX file and report.

    Example: csa2glmha convert denoiser.pth --rank 8 --data photos --degrade noise:25
    """
    from csa2glmha.convert import run_conversion
    from csa2glmha.options import make_options, read_recipe
    from csa2glmha.report.document import headline

    values = {} if recipe is None else read_recipe(recipe)
    values |= explicit_options(context, given, keep_defaults=recipe is None)
    result = run_conversion(checkpoint, make_options(**values))
    click.echo(headline(result.report))
    click.echo(f"\nreport: {result.output / 'report.md'}")


def explicit_options(context: click.Context, given: dict[str, Any], keep_defaults: bool) -> dict[str, Any]:
    """Options as the recipe names them; defaults only if nothing else may have set them."""
    values = {}
    for name, value in given.items():
        explicit = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if not explicit and (not keep_defaults or value is None):
            continue
        if name.startswith("no_"):
            values[name.removeprefix("no_")] = not value
        else:
            values[name] = value
    if "distill" in values and not isinstance(values["distill"], bool):
        values.pop("distill")
    return values


@cli.command(context_settings=CONTEXT)
@click.argument("checkpoint", type=EXISTING)
@click.option("--rank", default="8", show_default=True, help="Rank to estimate.")
@click.option("--input-size", type=int, default=256, show_default=True, help="Image side for MACs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(checkpoint: Path, rank: str, input_size: int, as_json: bool) -> None:
    """Show architecture, hyper-parameters and every attention layer of CHECKPOINT."""
    from csa2glmha.inspection import describe, inspect_model

    found = inspect_model(checkpoint, rank, input_size)
    click.echo(json.dumps(found, indent=2) if as_json else describe(found))


@cli.command(context_settings=CONTEXT)
@click.argument("student", type=EXISTING)
@click.option("--teacher", type=EXISTING, required=True, metavar="CKPT", help="The original checkpoint.")
@data_options
@training_options
@run_options
@click.option("-o", "--output", type=EXISTING, metavar="FILE", help="New student file [STUDENT-distilled].")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def distill(student: Path, teacher: Path, output: Path | None, overwrite: bool, **given: Any) -> None:
    """Fine-tune STUDENT against its teacher on your own images."""
    from csa2glmha.convert import distill_file

    written, result = distill_file(student, teacher, output, overwrite, **given)
    click.echo(f"steps: {result.steps}")
    click.echo(f"PSNR to teacher: {result.before:.2f} -> {result.after:.2f} dB on held-out crops")
    click.echo(f"student: {written}")


@cli.command(context_settings=CONTEXT)
@click.argument("student", type=EXISTING)
@click.option("-o", "--output", type=EXISTING, metavar="FILE", help="ONNX file [STUDENT with .onnx].")
@click.option("--opset", type=int, help="ONNX operator set.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def export(student: Path, output: Path | None, opset: int | None, overwrite: bool) -> None:
    """Export STUDENT (or an unconverted checkpoint) to ONNX and compare it with PyTorch."""
    from csa2glmha.convert import export_file

    result = export_file(student, output, opset, overwrite)
    for size in result.parity:
        shape = " x ".join(map(str, size.shape))
        click.echo(f"{shape}: largest difference {size.max_abs:.1e} ({size.relative:.1e} of the range)")
    click.echo(f"ONNX: {result.path} (opset {result.opset}, {result.size_bytes / 1e6:.1f} MB)")


@cli.command(context_settings=CONTEXT)
@click.argument("model", type=EXISTING)
@data_options
@click.option("--teacher", type=EXISTING, metavar="CKPT", help="Also compare with this model's outputs.")
@click.option("--crop", type=int, help="Judge on the central square of this side; whole images by default.")
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, per image too.")
def evaluate(model: Path, as_json: bool, **given: Any) -> None:
    """Measure PSNR and SSIM of MODEL (checkpoint, student or ONNX file) on images."""
    from csa2glmha.evaluation import describe_evaluation, evaluate_file

    found = evaluate_file(model, **given)
    click.echo(json.dumps(found, indent=2) if as_json else describe_evaluation(found))


@cli.command(context_settings=CONTEXT)
@click.option("--rank", default="8", show_default=True, help="Rank per head of keys and values.")
@click.option(
    "-o",
    "--output",
    type=EXISTING,
    default=Path("demo-output"),
    show_default=True,
    metavar="DIR",
    help="Output folder.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing results.")
@run_options
def demo(rank: str, output: Path, overwrite: bool, device: str, seed: int) -> None:
    """Compress the small denoiser that comes with the package, in a few minutes."""
    from csa2glmha.convert import run_conversion
    from csa2glmha.embedded import demo_options, embedded_teacher
    from csa2glmha.options import make_options
    from csa2glmha.report.document import headline

    options = make_options(
        **demo_options(), rank=rank, output=output, overwrite=overwrite, device=device, seed=seed
    )
    with embedded_teacher() as checkpoint:
        result = run_conversion(checkpoint, options)
    click.echo(headline(result.report))
    click.echo(f"\nreport: {(result.output / 'report.md').resolve()}")


def main() -> NoReturn:
    """Run the command line; errors are one line on standard error."""
    with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = _fail("interrupted; nothing half-written was left behind", 130)
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
        code = _fail(error.format_message() + hint, error.exit_code)
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except Csa2GlmhaError as error:
        code = _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _fail("interrupted; nothing half-written was left behind", 130)
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except MemoryError:
        code = _fail("out of memory; use smaller --batch, --crop or --calibration-size", 1)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error).lower():
            raise
        code = _fail("out of memory; use smaller --batch, --crop or --calibration-size", 1)
    sys.exit(code or 0)


def _fail(message: str, code: int) -> int:
    click.echo(f"csa2glmha: {' '.join(message.split())}", err=True)
    return code


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

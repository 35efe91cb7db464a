"""The command line: parse, call, print."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import click

from csa2glmha.config.options import ConvertOptions, flag_of, make_options, read_recipe
from csa2glmha.core.ending import run_safely
from csa2glmha.core.errors import DataError, ExportError, UsageError
from csa2glmha.core.hub import SCHEME, HubFile, local_file, parse_address
from csa2glmha.core.progress import is_first_process, telling
from csa2glmha.core.strict_json import dumps
from csa2glmha.core.text import one_line, writable
from csa2glmha.help import SuggestingGroup

Command = TypeVar("Command", bound=Callable[..., Any])
Model = Path | HubFile
EXISTING = click.Path(path_type=Path)


class _ModelFile(click.Path):
    """A path, or an address on the Hub, which is not downloaded before the options are known to be right."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.startswith(SCHEME):
            return parse_address(value)
        return super().convert(value, param, ctx)


MODEL = _ModelFile(path_type=Path)
#: More than any machine has use for; ONNX Runtime ends the process where the system refuses it threads.
MOST_THREADS = 1024
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _show_versions(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from csa2glmha.core.versions import describe_versions

        click.echo(describe_versions())
        context.exit()


@click.group(
    cls=SuggestingGroup,
    context_settings=CONTEXT,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show the versions of this tool and what it runs on.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Make trained channel-attention image models smaller and faster.

    A checkpoint of Restormer, MST++ or the like goes in, or of a network of your own (--network); out come a
    compressed student whose channel attention is guided and low-rank (GLMHA), a checked ONNX file, and a
    report of what was saved and what it cost.
    """
    context.with_resource(telling())
    if context.invoked_subcommand is None:
        # Click's own way is an error that holds the help, and errors are one line here.
        click.echo(context.get_help(), err=True)
        context.exit(UsageError.exit_code)


class Number(click.FloatRange):
    """A number within limits, and finite: NaN passes every comparison that a range makes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number is not None and not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def show(text: str) -> None:
    """Print text for people: what names hold must not reach a terminal as commands."""
    click.echo(writable(text))


def show_line(text: str) -> None:
    """Likewise one line, whatever names hold."""
    click.echo(one_line(text))


def settings(*names: str) -> Callable[[Command], Command]:
    """Command-line options for fields of ConvertOptions, which validates them and holds their defaults.

    Of one that is on unless it is switched off, the description is that of switching it off.
    """

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = _setting(name)(command)
        return command

    return decorate


def _setting(name: str) -> Callable[[Command], Command]:
    field = ConvertOptions.model_fields[name]
    if field.annotation is bool:
        flag, switched = flag_of(name, not field.default), not field.default
        return click.option(
            flag, name, is_flag=True, flag_value=switched, default=None, help=field.description
        )
    shown = "" if field.default is None else f" [default: {field.default}]"
    if get_origin(field.annotation) is Literal:
        choices = click.Choice(get_args(field.annotation))
        return click.option(flag_of(name), name, type=choices, help=f"{field.description}{shown}")
    metavar, several = METAVARS.get(name, "N"), field.default == ()
    shown = "" if several else shown
    text = f"{field.description}{shown}"
    return click.option(flag_of(name), name, metavar=metavar, multiple=several, help=text)


METAVARS = {
    "rank": "R",
    "rank_q": "R",
    "rank_k": "R",
    "rank_v": "R",
    "rank_pos": "R",
    "ffn": "SHARE",
    "macs": "SHARE|M",
    "params": "SHARE|M",
    "max_drop": "DB",
    "latency": "SHARE",
    "weights": "KEY",
    "data": "DIR",
    "targets": "DIR",
    "pair": "IN=TARGET",
    "degrade": "SPEC",
    "mask": "FILE",
    "mask_key": "NAME",
    "measurement_scale": "S",
    "mat_key": "NAME",
    "distill_minutes": "M",
    "learning_rate": "RATE",
    "truth_weight": "W",
    "state_minutes": "M",
    "tensorboard": "DIR",
    "device": "NAME",
    "network": "WHERE:NAME",
    "network_arg": "NAME=VALUE",
    "inputs": "NAME=DIR",
    "example": "SHAPE",
    "runtimes": "NAME,...",
}
NETWORK = ("network", "network_arg", "example", "value_range", "output_index")
RANKS = ("rank", "rank_q", "rank_k", "rank_v", "rank_pos")
INITIAL = ("ffn", "refit")
BUDGETS = ("macs", "params", "max_drop", "latency")
DATA = (
    "data",
    "targets",
    "pair",
    "degrade",
    "inputs",
    "mask",
    "mask_key",
    "measurement_scale",
    "mat_key",
    "stretch",
)
TRAINING = (
    "distill_steps",
    "distill_minutes",
    "distill_stages",
    "batch",
    "accumulate",
    "crop",
    "optimizer",
    "learning_rate",
    "loss",
    "truth_weight",
    "precision",
    "activation_checkpointing",
    "workers",
    "resume",
    "state_minutes",
    "tensorboard",
)


#: What runs an ONNX file in place of ONNX Runtime: as --device has it.
RUNTIME = click.option(
    "--runtime",
    "device",
    type=click.Choice(["onnxruntime", "openvino", "openvino-f32"]),
    help="What runs an ONNX file, on the CPU; openvino in the precision it takes by itself.",
)


def given_only(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the others keep the defaults of ConvertOptions or the recipe."""
    return {name: value for name, value in values.items() if value is not None and value != ()}


@cli.command(context_settings=CONTEXT, short_help="Compress a checkpoint: student, ONNX file, report.")
@click.argument("checkpoint", type=MODEL)
@settings(*RANKS, *BUDGETS, "attention", *INITIAL, *DATA, "calibration_crops", "calibration_size")
@settings(*TRAINING, "baselines", "distill", "input_size", "timing", "runtimes")
@settings(*NETWORK, "weights", "device", "seed")
@click.option("--recipe", type=EXISTING, metavar="FILE", help="YAML file that sets any of these options.")
@click.option("-o", "--output", metavar="DIR", help="Output folder [default: CHECKPOINT-rankR].")
@settings("overwrite")
@click.option("--dry-run", is_flag=True, help="Check everything and show what would be done; write nothing.")
def convert(
    checkpoint: Model,
    recipe: Path | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """Compress CHECKPOINT and write student, ONNX file and report."""
    from csa2glmha.commands.convert import preview_conversion, run_conversion
    from csa2glmha.commands.preview import describe_preview
    from csa2glmha.report.document import headline

    values = {} if recipe is None else read_recipe(recipe)
    values |= given_only(given)
    # One budget replaces the other.
    for name, other in (("distill_steps", "distill_minutes"), ("distill_minutes", "distill_steps")):
        if given[name] is not None and given[other] is None:
            values.pop(other, None)
    options = make_options(**values)
    if dry_run:
        show(describe_preview(preview_conversion(local_file(checkpoint), options)))
        return
    result = run_conversion(local_file(checkpoint), options)
    show(headline(result.record))
    show("")
    show_line(f"report: {result.output / 'report.html'}")
    missing = result.record.onnx_missing
    if missing:  # a script must see that files are missing
        name, reason = next(iter(missing.items()))
        raise ExportError(f"--for {name}: {reason}; all other results are complete")


@cli.command(context_settings=CONTEXT, short_help="Architecture and attention layers of a file.")
@click.argument("checkpoint", type=MODEL)
@settings(*RANKS, "input_size", *NETWORK, "weights")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(checkpoint: Model, as_json: bool, **given: Any) -> None:
    """Show architecture, hyper-parameters and every attention layer of CHECKPOINT.

    For a teacher also what its layers would cost at --rank; of an ONNX file what it says of itself.
    """
    options = make_options(**given_only(given))
    file = local_file(checkpoint)
    if file.suffix.lower() == ".onnx":
        from csa2glmha.export.metadata import describe_onnx, inspect_onnx

        onnx_file = inspect_onnx(file)
        show(dumps(onnx_file, indent=2) if as_json else describe_onnx(onnx_file))
        return
    from csa2glmha.commands.inspect import describe, inspect_model

    if options.measured:
        raise UsageError(
            f"--rank {options.rank}: inspect does not run the model, which these ranks follow from; give "
            "whole numbers, or use csa2glmha convert"
        )
    asked = options.model_fields_set & {"rank", "rank_q", "rank_k", "rank_v", "rank_pos"}
    found = inspect_model(
        file, options.ranks, options.input_size, options.weights, lowered=not asked, network=options
    )
    show(dumps(found, indent=2) if as_json else describe(found))


@cli.command(context_settings=CONTEXT, short_help="Why low rank works for a checkpoint, and which.")
@click.argument("checkpoint", type=MODEL)
@settings(*DATA, "calibration_crops", "calibration_size", *NETWORK, "weights", "device", "seed")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "-o", "--output", type=EXISTING, metavar="DIR", help="Also write JSON and plots to this folder."
)
@click.option("--sensitivity", is_flag=True, help="Also measure what each layer's ranks cost; takes minutes.")
@click.option("--overwrite", is_flag=True, help="Replace existing results.")
def analyze(
    checkpoint: Model,
    as_json: bool,
    output: Path | None,
    sensitivity: bool,
    overwrite: bool,
    **given: Any,
) -> None:
    """Show how much of CHECKPOINT's attention is static, its spectra, and what each rank would lose."""
    from csa2glmha.commands.analyze import analyze_file, describe_analysis

    options = make_options(**given_only(given), overwrite=overwrite)
    found = analyze_file(local_file(checkpoint), options, output, sensitivity)
    show(dumps(found, indent=2) if as_json else describe_analysis(found))


@cli.command(context_settings=CONTEXT, short_help="Fine-tune a student further on your own images.")
@click.argument("student", type=MODEL)
@click.option("--teacher", type=MODEL, required=True, metavar="CKPT", help="The original checkpoint.")
@settings(*DATA, *TRAINING, *NETWORK, "weights", "device", "seed")
@click.option("-o", "--output", type=EXISTING, metavar="FILE", help="New student file [STUDENT-distilled].")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def distill(student: Model, teacher: Model, output: Path | None, overwrite: bool, **given: Any) -> None:
    """Fine-tune STUDENT against its teacher on your own images."""
    from csa2glmha.commands.distill import distill_file

    options = make_options(**given_only(given))
    written, result = distill_file(local_file(student), local_file(teacher), output, overwrite, options)
    if not is_first_process():
        return
    show_line(f"steps: {result.steps}")
    scale = result.scale
    show_line(f"{scale.label}: {scale.change(result.before, result.after)} on {scale.what}")
    show_line(f"student: {written}")


@cli.command(context_settings=CONTEXT, short_help="Write a student or checkpoint as ONNX.")
@click.argument("model", type=MODEL, required=False)
@click.option("--teacher", type=MODEL, metavar="CKPT", help="In place of MODEL: an unconverted checkpoint.")
@click.option("-o", "--output", type=EXISTING, metavar="FILE", help="ONNX file [MODEL with .onnx].")
@click.option("--plain", is_flag=True, help="As PyTorch's exporter does it, without rewrites, to compare.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Arithmetic of the ONNX file.",
)
@click.option(
    "--io",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Inputs and output.",
)
@click.option(
    "--for",
    "target",
    type=click.Choice(["onnxruntime", "openvino", "tensorrt", "web"]),
    default="onnxruntime",
    show_default=True,
    help="The runtime that the file is to be fast and right with.",
)
@click.option("--shape", metavar="BxCxHxW", help="The one input shape to take [any].")
@click.option("--opset", type=int, help="ONNX operators, from 17 on [21; openvino, tensorrt 17; web 20].")
@settings(*DATA, "calibration_crops", "calibration_size", "input_size", *NETWORK, "weights", "seed")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def export(
    model: Model | None,
    teacher: Model | None,
    output: Path | None,
    plain: bool,
    precision: str,
    io: str,
    target: str,
    shape: str | None,
    opset: int | None,
    overwrite: bool,
    **given: Any,
) -> None:
    """Export MODEL (a student or an unconverted checkpoint) to ONNX and compare it with PyTorch.

    The network is rewritten for speed first, exactly; --plain leaves that out. --data and the like serve
    the calibration of int8, and show on held-out images what fp16 or int8 costs. Without --data, int8 takes
    the photographs that come with scikit-image, degraded as the student's metadata say or by --degrade.
    """
    from csa2glmha.commands.export import ExportChoices, export_file, parse_shape

    if (model is None) == (teacher is None):
        raise UsageError("export: give one file, MODEL or --teacher CKPT")
    choices = ExportChoices(opset, plain, precision, io == "fp16", overwrite, target, parse_shape(shape))
    options = make_options(**given_only(given))
    result, loss = export_file(local_file(model or teacher or Path()), output, choices, options)
    for size in result.parity:
        taken = " x ".join(map(str, size.shape))
        show_line(f"{taken}: largest difference {size.max_abs:.1e} ({size.relative:.1e} of the range)")
    for trial in result.tried:
        show_line(trial.describe())
    show_line(f"loads in: {'; '.join(need.describe() for need in result.needs)}")
    for note in result.notes:
        show_line(f"note: {note}")
    if result.nodes[0]:
        kept = "kept" if result.simplified else "no smaller, left as it was"
        show_line(f"onnxsim: {result.nodes[0]} nodes before, {result.nodes[1]} after: {kept}")
    if result.headroom is not None:
        show_line(result.headroom.describe())
    if loss is not None:
        show(loss.describe(precision))
    megabytes = result.size_bytes / 1e6
    show_line(f"ONNX: {result.path} (opset {result.opset}, IR {result.ir_version}, {megabytes:.1f} MB)")


@cli.command(context_settings=CONTEXT, short_help="PSNR and SSIM, or accuracy, of any model on images.")
@click.argument("model", type=MODEL)
@settings(*DATA)
@click.option("--teacher", type=MODEL, metavar="CKPT", help="Also compare with this model's outputs.")
@click.option("--crop", type=int, metavar="N", help="Evaluate on the central square of this side only.")
@click.option(
    "--channel",
    type=click.Choice(["rgb", "y"]),
    default="rgb",
    show_default=True,
    help="What PSNR and SSIM are of: y is that of YCbCr, as in papers on deraining.",
)
@settings(*NETWORK, "weights", "device", "seed")
@RUNTIME
@click.option("--json", "as_json", is_flag=True, help="Print JSON, per image too.")
def evaluate(
    model: Model, teacher: Model | None, crop: int | None, channel: str, as_json: bool, **given: Any
) -> None:
    """Measure PSNR and SSIM of MODEL (checkpoint, student or ONNX file) on images.

    Of a classifier it is top-1 agreement and KL divergence to --teacher, and top-1 accuracy where --data has
    a folder for each class, which are numbered in the order of their names.

    --weights chooses those of --teacher where it is given, otherwise those of MODEL.

    ONNX files run on the CPU unless --device names a provider that ONNX Runtime has here, such as cuda.
    """
    from csa2glmha.commands.evaluate import describe_evaluation, evaluate_file

    options = make_options(**given_only(given))
    reference = None if teacher is None else local_file(teacher)
    found = evaluate_file(local_file(model), options, reference, crop, channel)
    show(dumps(found, indent=2) if as_json else describe_evaluation(found))


@cli.command(context_settings=CONTEXT, short_help="Restore images, whole folders of them, of any size.")
@click.argument("model", type=MODEL)
@click.argument("images", type=EXISTING, nargs=-1, required=True)
@click.option("-o", "--output", type=EXISTING, required=True, metavar="DIR", help="Folder of the results.")
@click.option(
    "--tile", type=click.IntRange(16), metavar="N", help="Side of tiles [where memory demands it: 512]."
)
@click.option(
    "--overlap",
    type=click.IntRange(0),
    metavar="N",
    help="Context around a tile [64, or a quarter of a small tile].",
)
@click.option(
    "--tile-mode",
    type=click.Choice(["global", "plain"]),
    help="Attention of the whole image, or of each tile [default: global; ONNX: plain].",
)
@click.option(
    "--memory", type=Number(0, 1e6, min_open=True), metavar="GB", help="To use at most [what is free]."
)
@settings("inputs", "mask", "mask_key", "measurement_scale", "mat_key", "stretch")
@click.option(
    "--format",
    "cube_format",
    type=click.Choice(["npy", "mat"]),
    default="npy",
    show_default=True,
    help="Of spectral results.",
)
@settings(*NETWORK, "weights", "device")
@RUNTIME
@click.option("--overwrite", is_flag=True, help="Replace existing results; never the inputs.")
@click.option("--skip-existing", is_flag=True, help="Leave existing results and make the others.")
def run(
    model: Model,
    images: tuple[Path, ...],
    output: Path,
    tile: int | None,
    overlap: int | None,
    tile_mode: str | None,
    memory: float | None,
    cube_format: str,
    overwrite: bool,
    skip_existing: bool,
    **given: Any,
) -> None:
    """Restore IMAGES, files or folders, with MODEL (checkpoint, student or ONNX file).

    Names, subfolders and bit depth are kept. For MST give measurements or cubes, and --mask. Of a classifier
    the result is predictions.csv: for each image five classes, numbered from 0, and their probabilities. ONNX
    files run on the CPU unless --device names a provider that ONNX Runtime has here, such as cuda.
    """
    from csa2glmha.commands.run import run_files
    from csa2glmha.inference.plan import TileOptions

    options = make_options(**given_only(given))
    budget = None if memory is None else int(memory * 1e9)
    tiles = TileOptions(tile, overlap, tile_mode, budget)
    result = run_files(
        local_file(model),
        images,
        output,
        tiles=tiles,
        options=options,
        cube_suffix=f".{cube_format}",
        overwrite=overwrite,
        skip_existing=skip_existing,
    )
    show_line(result.describe(output))
    if result.failed:  # a script must see that results are missing
        raise DataError(
            f"{result.failed} of {result.done + result.failed} files could not be restored: the "
            "lines above say why; repair or remove them, and --skip-existing makes only what is missing"
        )


@cli.command(context_settings=CONTEXT, short_help="Time and memory of models, side by side.")
@click.argument("models", type=MODEL, nargs=-1, required=True)
@click.option("--size", type=click.IntRange(8), metavar="N", help="Side of the input [default: 256].")
@click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    metavar="N",
    help="Threads [one for each core that may be used].",
)
@click.option(
    "--provider",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="cpu, cuda, or another of ONNX Runtime's.",
)
@click.option(
    "--seconds",
    type=Number(0, 1e6),
    default=60.0,
    show_default=True,
    metavar="S",
    help="To time at most, once 5 rounds are done.",
)
@click.option(
    "--runtime",
    "runtimes",
    metavar="NAME,...",
    help="onnxruntime, openvino, openvino-f32; torch (compiled too, where a compiler is), torch-compile "
    "[onnxruntime, torch as it stands].",
)
@settings(*NETWORK, "weights")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    models: tuple[Model, ...],
    size: int | None,
    threads: int | None,
    provider: str,
    seconds: float,
    runtimes: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Compare MODELS (ONNX files, checkpoints, students) with the first of them.

    They run in turns, until the ratios of their times are known to one percent or time is up.
    """
    from csa2glmha.bench.candidates import Settings
    from csa2glmha.bench.rounds import Patience
    from csa2glmha.commands.bench import describe_bench, run_bench

    options = make_options(**given_only(given))
    side, asked = None if size is None else (size, size), tuple(runtimes.split(",")) if runtimes else ()
    settings = Settings(side, threads, provider, options.weights, options, asked)
    found = run_bench([local_file(model) for model in models], settings, Patience(seconds=seconds))
    show(dumps(found, indent=2) if as_json else describe_bench(found))


@cli.command(context_settings=CONTEXT, short_help="Several ranks of one checkpoint, compared.")
@click.argument("checkpoint", type=MODEL)
@click.option(
    "--ranks",
    default="4,8,16,full",
    show_default=True,
    metavar="R,R,...",
    help="Ranks; also auto:0.75 (searched within that share of the MACs), auto:max-drop=0.05, and "
    "auto:0.75:ffn=full for ranks alone.",
)
@click.option(
    "--ffn",
    metavar="SHARE,...",
    help="Shares of feed-forward channels to keep, such as full,0.75,0.5: each with every rank. auto is made "
    "once and chooses them itself; with full alone it chooses ranks only.",
)
@settings("rank_q", "attention", "refit", *DATA, "calibration_crops", "calibration_size")
@settings(*(name for name in TRAINING if name != "resume"), "distill", "input_size", "timing")
@settings("baselines", *NETWORK, "weights", "device", "seed")
@click.option(
    "-o", "--output", type=EXISTING, metavar="DIR", help="Output folder [default: CHECKPOINT-sweep]."
)
@click.option("--overwrite", is_flag=True, help="Make points again that are there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sweep(
    checkpoint: Model,
    ranks: str,
    ffn: str | None,
    timing: bool | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Convert CHECKPOINT to several ranks, and widths of feed-forward networks, and compare them in one table
    and one plot.

    An interrupted sweep goes on when it is repeated; points that are done are not done again.
    """
    from csa2glmha.commands.sweep import describe_sweep, run_sweep
    from csa2glmha.sweep.points import parse_points

    points = parse_points(ranks, given_only(given), ffn)
    file = local_file(checkpoint)
    output = output or Path(f"{points[0].options.stem_of(file)}-sweep")
    found = run_sweep(file, points, output, overwrite=overwrite, latency=timing is not False)
    show(dumps(found.to_json(), indent=2) if as_json else describe_sweep(found))
    if not as_json:
        show("")
        show_line(f"plot: {output / 'pareto.png'}")


@cli.command(context_settings=CONTEXT, short_help="Send the results of a conversion to the Hub.")
@click.argument("folder", type=EXISTING)
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="A new repository is private; a public one is refused.")
@click.option("--log", is_flag=True, help="Send distill.jsonl, the record of the training, too.")
@click.option("--yes", is_flag=True, help="Send the files; without it nothing is connected to.")
@click.option("--overwrite", is_flag=True, help="Replace files that the repository has.")
def push(folder: Path, repository: str, private: bool, log: bool, yes: bool, overwrite: bool) -> None:
    """Show what of a conversion's FOLDER would go to the Hugging Face Hub; --yes sends it.

    Only what convert made goes: student, ONNX file, reports, pictures and the model card. Log in before with
    hf auth login.
    """
    from csa2glmha.commands.push import push_folder

    show(push_folder(folder, repository, private=private, log=log, yes=yes, overwrite=overwrite))


@cli.command(context_settings=CONTEXT, short_help="Compress the denoiser that comes with the package.")
@settings("rank")
@click.option(
    "-o", "--output", default="demo-output", show_default=True, metavar="DIR", help="Output folder."
)
@click.option("--overwrite", is_flag=True, help="Replace existing results.")
@settings("resume", "device", "seed")
def demo(**given: Any) -> None:
    """Compress the small denoiser that comes with the package, in a few minutes."""
    from csa2glmha.commands.convert import run_conversion
    from csa2glmha.embedded import demo_options, embedded_teacher
    from csa2glmha.report.document import headline

    options = make_options(**demo_options(), **given_only(given))
    with embedded_teacher() as checkpoint:
        result = run_conversion(checkpoint, options)
    show(headline(result.record))
    show("")
    show_line(f"report: {(result.output / 'report.html').resolve()}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; errors are one line on standard error.

    Args:
        arguments: those behind the program's name; None: those that this process was started with.
    """
    with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
        signal.signal(signal.SIGTERM, _terminate)
    if not sys.warnoptions:
        # What libraries find odd, about a damaged image for instance, means nothing without its name.
        warnings.simplefilter("ignore")
    name = None if arguments is None else "csa2glmha"
    sys.exit(run_safely(lambda: cli.main(arguments, name, standalone_mode=False)))


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

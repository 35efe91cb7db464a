"""The options of a conversion, from the command line, Python or a recipe file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictFloat, StrictInt, ValidationError
from pydantic_core import PydanticCustomError

from csa2glmha.config.recipe import load_recipe
from csa2glmha.core.errors import UsageError
from csa2glmha.core.text import shortened

if TYPE_CHECKING:
    from csa2glmha.config.budget import Budget
    from csa2glmha.config.ranks import Ranks


def _without_nul(path: Path) -> Path:
    """Refuse what no system takes, and what Python would raise ValueError for somewhere else."""
    if "\0" in str(path):
        raise PydanticCustomError("path", "a path has no NUL character")
    return path


#: A share of energy, where a rank may be given as one.
Share = Annotated[StrictFloat, Field(gt=0, lt=1)]
#: More than any network has channels: so large that no arithmetic with it overflows, either.
Rank = Annotated[StrictInt, Field(le=1_000_000)]
FilePath = Annotated[Path, AfterValidator(_without_nul)]


class ConvertOptions(BaseModel):
    """Everything that decides the result of a conversion.

    Field names are the keys of a recipe, and with dashes the options of the command line, which takes
    defaults and descriptions from here.
    """

    # Infinities and NaN would pass every range.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: Rank | Share | str = Field(
        8,
        description="Rank per head of keys and values: a number; a share of each layer's energy to keep, "
        "such as 0.99; full; or auto, which takes a budget.",
    )
    macs: float | str | None = Field(
        None, description="Budget of --rank auto: a share of the teacher's MACs such as 0.75, or 110G."
    )
    params: float | str | None = Field(
        None, description="Budget of --rank auto: a share of its parameters, or 20M."
    )
    max_drop: float | None = Field(
        None, gt=0, le=100, description="Budget of --rank auto: dB of PSNR to the truth, before distillation."
    )
    rank_q: Rank | str | None = Field(None, description="Rank of queries; full unless given.")
    rank_k: Rank | Share | str | None = Field(
        None, description="Rank of keys, instead of --rank; 0 leaves out queries and keys."
    )
    rank_v: Rank | Share | str | None = Field(None, description="Rank of values, instead of --rank.")
    rank_pos: Rank | str | None = Field(
        None, description="MST, MST++: rank of the values that the positional embedding is made from; full."
    )
    attention: Literal["expanded", "compact"] = Field(
        "expanded", description="expanded: softmax over c x c logits; compact: over r keys, as in the paper."
    )
    weights: str | None = Field(
        None,
        min_length=1,
        description="Which weights of a checkpoint that holds several, such as params; averaged ones.",
    )
    data: FilePath | None = Field(
        None, description="Folder to calibrate, distil and judge on: images, for MST also cubes."
    )
    targets: FilePath | None = Field(
        None, description="Folder of their ground truth, paired by file name; for MST++ cubes."
    )
    pair: str | None = Field(
        None,
        description="How names of --data and --targets differ, where that is not seen by itself: "
        "'{}_in={}_gt', many to one '{}_*={}', of folders blur=sharp.",
    )
    degrade: str | None = Field(
        None, description="Make inputs of clean images: noise:25, blur:1-2+noise:5, motion:15, jpeg:40, none."
    )
    mask: FilePath | None = Field(
        None, description="MST: file of the aperture mask; the student is made for this mask alone."
    )
    mask_key: str | None = Field(
        None, description="Name of the mask in a .mat or .npz file of several arrays."
    )
    measurement_scale: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="MST: the stored value of a measurement that is 1, white through a half-open mask: 4095 "
        "for counts of 12 bits, half the number of bands for plain sums; recognised unless given.",
    )
    stretch: bool = Field(
        True,
        description="RGB to spectra: take images as they are, not stretched to [0, 1] as MST++ has them.",
    )
    mat_key: str | None = Field(None, description="Name of the array in .mat and .npz files of --data.")
    calibration_crops: int = Field(32, ge=2, le=100_000, description="Crops for the attention statistics.")
    calibration_size: int = Field(128, ge=16, le=4096, description="Their side in pixels.")
    baselines: bool = Field(
        False, description="Also make other methods' students, at equal MACs and steps, and compare."
    )
    distill: bool = Field(True, description="Fine-tune against the original.")
    distill_steps: int | None = Field(
        None, ge=0, le=1_000_000_000, description="Distillation steps, instead of minutes."
    )
    distill_minutes: float = Field(6.0, gt=0, le=1e6, description="Time for distillation.")
    distill_stages: Literal["both", "layers", "end"] = Field(
        "both", description="layers: each against the teacher's; end: the output against the teacher's; both."
    )
    batch: int = Field(2, ge=1, le=65536, description="Crops per distillation step, on each process.")
    accumulate: int = Field(1, ge=1, le=4096, description="Times as many, in parts one after another.")
    crop: int | None = Field(
        None, ge=16, le=4096, description="Their side in pixels; 96, for MST 128 or the mask's."
    )
    learning_rate: float = Field(1e-4, gt=0, le=1, description="Peak learning rate of the distillation.")
    loss: Literal["l1", "charbonnier", "l2"] = Field("l1", description="l1, charbonnier or l2.")
    truth_weight: float = Field(
        0.0, ge=0, le=1e6, description="Weight of the loss against the ground truth; the teacher's is 1."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Arithmetic of the distillation: fp32, bf16 or fp16."
    )
    activation_checkpointing: bool = Field(
        False, description="Distil in less memory: compute activations twice instead of keeping them."
    )
    workers: int = Field(0, ge=0, le=256, description="Processes that make batches beside each trainer.")
    resume: bool = Field(False, description="Continue an interrupted run where it was.")
    state_minutes: float = Field(5.0, ge=0, le=1e6, description="Minutes between states to resume from.")
    tensorboard: FilePath | None = Field(None, description="Folder for TensorBoard's curves.")
    input_size: int = Field(256, ge=8, le=16384, description="Image side for MACs, latency and quality.")
    device: str = Field("auto", description="auto (a GPU when there is one), cpu, cuda, cuda:N or mps.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of everything random.")
    output: FilePath | None = Field(None, description="Output folder [CHECKPOINT-rankR].")
    overwrite: bool = Field(False, description="Replace existing results.")
    latency: bool | Annotated[float, Field(gt=0, le=10)] = Field(
        True, description="Time the ONNX models side by side; a number is a budget of --rank auto."
    )

    @property
    def ranks(self) -> Ranks:
        """The ranks per head; full where they are to be searched for, or a share of energy is given.

        Raises:
            UsageError: one is not a rank.
        """
        from csa2glmha.config.ranks import Ranks  # not at the top: --help need not wait for PyTorch

        def fixed(value: float | str | None, flag: str) -> int | str | None:
            measured = _share(value, flag) is not None or (flag == "--rank" and self.automatic)
            return "full" if measured or isinstance(value, float) else value

        rank = fixed(self.rank, "--rank")
        rank_k, rank_v = fixed(self.rank_k, "--rank-k"), fixed(self.rank_v, "--rank-v")
        return Ranks.parse(rank, self.rank_q, rank_k, rank_v, self.rank_pos)

    @property
    def shares(self) -> tuple[float | None, float | None]:
        """The shares of energy that keys and values are to keep; None where a rank is given."""
        base = _share(self.rank, "--rank")
        keys = base if self.rank_k is None else _share(self.rank_k, "--rank-k")
        values = base if self.rank_v is None else _share(self.rank_v, "--rank-v")
        return keys, values

    @property
    def automatic(self) -> bool:
        """Ranks are to be searched for."""
        return isinstance(self.rank, str) and self.rank.strip().lower() == "auto"

    @property
    def measured(self) -> bool:
        """Ranks follow from measurements on the teacher."""
        return self.automatic or self.shares != (None, None)

    def ranks_in_words(self) -> str:
        """The ranks, or what they are to follow from."""
        if self.automatic:
            return f"auto, {self.budget}"
        kept = [
            f"{name} {share:g} of the energy"
            for name, share in zip("kv", self.shares, strict=True)
            if share is not None
        ]
        return ", ".join([str(self.ranks), *kept])

    @property
    def budget(self) -> Budget | None:
        """What a search for ranks must keep to; None: there is none to make.

        Raises:
            UsageError: more or less than one budget for a search, or one without a search.
        """
        from csa2glmha.config.budget import LATENCY, MAX_DROP, Budget, parse_amount

        found = [
            parse_amount(value, kind)
            for kind, value in (("macs", self.macs), ("params", self.params))
            if value is not None
        ]
        if self.max_drop is not None:
            found.append(Budget(MAX_DROP, self.max_drop))
        if not isinstance(self.latency, bool):
            found.append(Budget(LATENCY, self.latency))
        if not self.automatic:
            if found:
                raise UsageError(f"{found[0]}: is a budget of --rank auto; add that, or leave it out")
            return None
        if len(found) != 1:
            given = " and ".join(map(str, found)) or "none"
            raise UsageError(
                f"--rank auto: takes one of --macs, --params, --latency and --max-drop, not {given}"
            )
        return found[0]


def make_options(**values: Any) -> ConvertOptions:
    """Validate options.

    Raises:
        UsageError: the first value that is unknown or out of range, in one line.
    """
    try:
        options = ConvertOptions(**values)
    except ValidationError as error:
        raise UsageError(_first_problem(error)) from None
    _ = options.budget
    if options.measured and options.attention != "expanded":
        raise UsageError(
            "--attention compact: ranks are chosen for expanded attention; leave it out, or give a whole "
            "number as --rank"
        )
    if options.automatic:
        _check_automatic(options)
    else:
        _ = options.ranks
    if options.distill_steps is not None and "distill_minutes" in options.model_fields_set:
        raise UsageError("--distill-steps and --distill-minutes exclude each other: give one of them")
    if options.mask_key is not None and options.mask is None:
        raise UsageError(f"--mask-key {options.mask_key}: needs --mask, the file that it names an array of")
    if options.targets is not None and options.data is None:
        raise UsageError("--targets needs --data: the folder of the inputs that the targets belong to")
    if options.pair is not None:
        from csa2glmha.data.pairing import parse_pattern  # not at the top, as above

        parse_pattern(options.pair)
        if options.targets is None:
            raise UsageError(
                f"--pair {options.pair}: says how inputs and --targets belong together; add those"
            )
    if options.targets is not None and options.degrade is not None:
        raise UsageError("--targets and --degrade exclude each other: paired inputs are degraded already")
    return options


def _share(value: float | str | None, flag: str) -> float | None:
    """A share of energy; None where the value is something else.

    Raises:
        UsageError: a number with a fraction that is no share.
    """
    if isinstance(value, int) or value is None:
        return None
    try:
        share = float(value)
    except ValueError:
        return None
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value):
        return None
    if not 0 < share < 1:
        raise UsageError(
            f"{flag} {value}: neither a rank nor a share of energy; give a whole number such as 8, or a "
            "share between 0 and 1 such as 0.99"
        )
    return share


def _check_automatic(options: ConvertOptions) -> None:
    ranks = {"q": options.rank_q, "k": options.rank_k, "v": options.rank_v, "pos": options.rank_pos}
    for name, rank in ranks.items():
        if rank is not None:
            raise UsageError(f"--rank-{name} {rank}: --rank auto chooses all ranks; leave it out")


def read_recipe(path: Path) -> dict[str, Any]:
    """The options a recipe file sets; relative folders in it are taken from the current directory.

    Raises:
        UsageError: not readable, not YAML, or not a mapping of known options.
    """
    content = load_recipe(path)
    unknown = [str(key) for key in content if key not in ConvertOptions.model_fields]
    if unknown:
        raise UsageError(
            f"recipe {path}: unknown option {shortened(unknown[0])!r}; "
            f"known: {', '.join(ConvertOptions.model_fields)}"
        )
    try:
        ConvertOptions(**content)
    except ValidationError as error:
        raise UsageError(f"recipe {path}: {_first_problem(error)}") from None
    return content


def _first_problem(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    # Of a value that may be of several types, the range that it is out of says more than a type it is not of.
    alike = [each for each in problems if each["loc"][:1] == first["loc"][:1]]
    first = next((each for each in alike if each["type"] in _RANGES), first)
    name = ".".join(str(part) for part in first["loc"][:1])
    flag = "--" + name.replace("_", "-")
    if first["type"] == "extra_forbidden":
        return f"unknown option {name!r}; known: {', '.join(ConvertOptions.model_fields)}"
    return f"{flag} {shortened(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"


_RANGES = {
    "finite_number",
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
}

"""How `--help` looks: options in groups, examples at the end, the nearest name for a typo."""

from __future__ import annotations

import difflib

import click

#: Groups of options in the order of their help, and the options of each.
GROUPS: dict[str, tuple[str, ...]] = {
    "Ranks and widths": (
        "rank",
        "rank_q",
        "rank_k",
        "rank_v",
        "rank_pos",
        "macs",
        "params",
        "max_drop",
        "latency",
        "ranks",
        "attention",
        "ffn",
        "refit",
    ),
    "Your own network": ("network", "network_arg", "example", "value_range", "output_index"),
    "Data": (
        "data",
        "targets",
        "pair",
        "degrade",
        "inputs",
        "mask",
        "mask_key",
        "mat_key",
        "measurement_scale",
        "stretch",
        "calibration_crops",
        "calibration_size",
        "sensitivity",
        "channel",
    ),
    "Distillation": (
        "teacher",
        "distill_steps",
        "distill_minutes",
        "distill_stages",
        "distill",
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
        "baselines",
    ),
    "Export and timing": (
        "plain",
        "io",
        "opset",
        "target",
        "shape",
        "runtime",
        "runtimes",
        "input_size",
        "timing",
        "size",
        "threads",
        "provider",
        "seconds",
    ),
    "Tiles": ("tile", "overlap", "tile_mode", "memory"),
    "Output": (
        "output",
        "cube_format",
        "as_json",
        "overwrite",
        "skip_existing",
        "dry_run",
        "private",
        "log",
        "yes",
    ),
}
_OTHERS = "Other options"
#: By command and option, where a name means something else than elsewhere.
_EXCEPTIONS = {
    ("export", "precision"): "Export and timing",
    ("export", "teacher"): "Export and timing",
    ("evaluate", "teacher"): "Data",
    ("evaluate", "crop"): "Data",
}

#: The commands in the order of their help.
COMMANDS: dict[str, tuple[str, ...]] = {
    "Compress": ("convert", "sweep", "distill", "demo"),
    "Look into a file": ("inspect", "analyze"),
    "Use and measure": ("run", "evaluate", "bench", "export"),
    "Share": ("push",),
}

#: Command lines to learn from, all run by a test: `denoiser.pth` is a checkpoint, `photos` a folder of
#: clean images.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "convert": (
        "csa2glmha convert denoiser.pth --rank 8 --data photos --degrade noise:25",
        "csa2glmha convert denoiser.pth --rank full --for openvino,tensorrt",
        "csa2glmha convert denoiser.pth --rank auto --macs 0.75 --data photos --degrade noise:25",
    ),
    "inspect": (
        "csa2glmha inspect denoiser.pth --rank 16",
        "csa2glmha inspect denoiser-rank8/model.onnx",
    ),
    "analyze": ("csa2glmha analyze denoiser.pth --data photos --degrade noise:25 -o analysis",),
    "distill": (
        "csa2glmha distill denoiser-rank8/student.safetensors --teacher denoiser.pth --data photos"
        " --degrade noise:25 --distill-minutes 60",
    ),
    "export": (
        "csa2glmha export --teacher denoiser.pth -o original.onnx",
        "csa2glmha export denoiser-rank8/student.safetensors --precision fp16 -o half.onnx",
    ),
    "evaluate": ("csa2glmha evaluate denoiser-rank8/model.onnx --data photos --degrade noise:25",),
    "run": ("csa2glmha run denoiser-rank8/model.onnx photos -o restored",),
    "bench": ("csa2glmha bench original.onnx denoiser-rank8/model.onnx --threads 1",),
    "sweep": (
        "csa2glmha sweep denoiser.pth --ranks 4,8,full --data photos --degrade noise:25",
        "csa2glmha sweep denoiser.pth --ranks 8,16 --ffn full,0.75 --data photos --degrade noise:25",
    ),
    "demo": ("csa2glmha demo -o demo-output",),
    "push": ("csa2glmha push denoiser-rank8 some-lab/denoiser-rank8",),
}


class GroupedCommand(click.Command):
    """A command whose help shows its options in groups, and examples."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group that this command has options of."""
        records: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                records.setdefault(self._group_of(parameter.name or ""), []).append(record)
        for group in (*GROUPS, _OTHERS):
            if group in records:
                with formatter.section(group):
                    formatter.write_dl(records[group])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        examples = EXAMPLES.get(self.name or "", ())
        if examples:
            with formatter.section("Examples"):
                for example in examples:
                    # A line that is cut could not be copied.
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
        super().format_epilog(ctx, formatter)

    def _group_of(self, option: str) -> str:
        usual = next((group for group, names in GROUPS.items() if option in names), _OTHERS)
        return _EXCEPTIONS.get((self.name or "", option), usual)


class SuggestingGroup(click.Group):
    """A group of such commands that knows what a mistyped name was meant to be."""

    command_class = GroupedCommand

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in groups, by what they are for."""
        known = self.list_commands(ctx)
        grouped = [name for names in COMMANDS.values() for name in names]
        rest = {"Others": tuple(name for name in known if name not in grouped)}
        width = max(map(len, known))
        for title, names in (COMMANDS | rest).items():
            shown = [command for name in names if (command := self.get_command(ctx, name)) is not None]
            if shown:
                lines = [(str(each.name).ljust(width), each.get_short_help_str(90)) for each in shown]
                with formatter.section(title):
                    formatter.write_dl(lines)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; an unknown name is answered with the nearest known one."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"no such command {name!r}; {meant}", ctx)
        return super().resolve_command(ctx, args)

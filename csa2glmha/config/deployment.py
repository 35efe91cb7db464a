"""Which runtimes ONNX files are made for."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from csa2glmha.config.affects import Affects, Options

#: As the command line has them; `export/targets.py` says what each is.
Runtime = Literal["onnxruntime", "openvino", "tensorrt", "web"]
RUNTIME_NAMES: tuple[Runtime, ...] = get_args(Runtime)


def _separate(value: Any) -> Any:
    """Names between commas, of one text or of several; each once, in the order of :data:`RUNTIME_NAMES`."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value
    named = list(dict.fromkeys(name.strip() for text in texts for name in text.split(",")))
    return tuple(sorted(named, key=lambda name: [*RUNTIME_NAMES, name].index(name)))


class DeployOptions(Options):
    """The ONNX files."""

    runtimes: Annotated[tuple[Runtime, ...], Affects.REPORT, BeforeValidator(_separate)] = Field(
        (),
        description="Write ONNX files for these runtimes, too: openvino, tensorrt, web; several with commas.",
    )

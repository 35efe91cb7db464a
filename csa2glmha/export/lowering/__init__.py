"""Networks as they are deployed; see :func:`deploy`."""

from csa2glmha.export.lowering.rewrite import deploy, to_half

__all__ = ["deploy", "to_half"]

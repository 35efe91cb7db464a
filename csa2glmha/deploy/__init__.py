"""Networks as they are deployed; see :func:`deploy`."""

from csa2glmha.deploy.rewrite import deploy, to_half

__all__ = ["deploy", "to_half"]

"""Initialisation of GLMHA layers from a teacher's attention statistics."""

from csa2glmha.initialize.fit import LayerFit
from csa2glmha.initialize.student import initialise_student

__all__ = ["LayerFit", "initialise_student"]

"""Initialisation of GLMHA layers from a teacher's attention statistics."""

from csa2glmha.initialize.student import LayerFit, initialise_student

__all__ = ["LayerFit", "initialise_student"]

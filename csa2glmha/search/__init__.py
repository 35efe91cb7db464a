"""Choosing the ranks of every layer under a budget."""

from csa2glmha.search.allocate import Allocation, InfeasibleError, allocate

__all__ = ["Allocation", "InfeasibleError", "allocate"]

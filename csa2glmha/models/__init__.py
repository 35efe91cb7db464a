"""The supported networks and the registry that recognises them."""

from csa2glmha.models.base import RestorationModel
from csa2glmha.models.registry import ARCHITECTURES, build, build_from_state, recognise

__all__ = ["ARCHITECTURES", "RestorationModel", "build", "build_from_state", "recognise"]

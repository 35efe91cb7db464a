"""The supported networks and the registry that recognises them."""

from .base import RestorationModel
from .registry import ARCHITECTURES, build, build_from_state, recognise

__all__ = ["ARCHITECTURES", "RestorationModel", "build", "build_from_state", "recognise"]

"""A network as everything else sees it: those of known families, and the user's own."""

from csa2glmha.networks.model import RestorationModel, reflect_pad_to_multiple, run, scaled, skeleton_of

__all__ = ["RestorationModel", "reflect_pad_to_multiple", "run", "scaled", "skeleton_of"]

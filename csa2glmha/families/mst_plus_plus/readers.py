"""How the attention of MST++, S-MSA, is read."""

from __future__ import annotations

from csa2glmha.families.mst_plus_plus.network import SMSA
from csa2glmha.families.spectral.readers import SpectralReader


class SMSAReader(SpectralReader):
    """S-MSA, with nothing but what spectral-wise attention has."""

    module_type = SMSA

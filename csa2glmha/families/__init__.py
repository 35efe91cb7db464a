"""The supported networks: one folder each, and one name in this tuple.

A file is of the first that it has the whole signature of: PromptIR's is more than Restormer's. The rest of
the package asks :mod:`csa2glmha.families.registry`.
"""

from csa2glmha.families import cidnet, mst, mst_plus_plus, promptir, restormer, retinexformer
from csa2glmha.families.family import Family

FAMILIES: tuple[Family, ...] = (
    promptir.FAMILY,
    restormer.FAMILY,
    retinexformer.FAMILY,
    cidnet.FAMILY,
    mst.FAMILY,
    mst_plus_plus.FAMILY,
)

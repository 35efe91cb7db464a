"""The supported networks: one folder each, and one name in this tuple.

A file is compared with them in this order. The rest of the package asks :mod:`csa2glmha.families.registry`.
"""

from csa2glmha.families import mst, mst_plus_plus, restormer
from csa2glmha.families.family import Family

FAMILIES: tuple[Family, ...] = (restormer.FAMILY, mst.FAMILY, mst_plus_plus.FAMILY)

"""Outside `families/` no code knows a family: no name, no class of its blocks, nothing that lies in them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import csa2glmha
from csa2glmha.families import FAMILIES

PACKAGE = Path(csa2glmha.__file__).parent

NAMES = "|".join(family.name for family in FAMILIES)
#: Families by name, and what only they have: classes, attributes, functions and modules.
KNOWN = re.compile(
    rf"[\"'](?:{NAMES})[\"']|families\.(?:{NAMES}|spectral|transposed)|\b(?:MST|MDTA|M?SM?SA|Restormer)\b"
    r"|pos_emb|\.mm\b|TransformerBlock|PromptIR|IGMSA|Retinexformer|CIDNet|HVITransform|SpectralBlocks|MaskGuidance|SpectralGLMHA|(?:un)?bake_mask|freeze_mask"
)


def code_of(source: str) -> str:
    """Without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body[0] = ast.Pass()
    return ast.unparse(tree)


def offenders() -> set[str]:
    files = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    return {
        name
        for name, path in files.items()
        if not name.startswith("families/") and KNOWN.search(code_of(path.read_text(encoding="utf-8")))
    }


def test_nothing_else_knows_a_family() -> None:
    assert offenders() == set()


def test_the_search_finds_code_and_passes_over_prose() -> None:
    code = '"""MST."""\n# bake_mask\ndef f():\n    """Restormer."""\n    return "a mask"\n'
    assert not KNOWN.search(code_of(code))
    found = "x.pos_emb(v)", "x.mm(v)", "name == 'mst'", "isinstance(x, MDTA)", "import csa2glmha.families.mst"
    for line in found:
        assert KNOWN.search(code_of(line)), line
    assert not KNOWN.search(code_of("import csa2glmha.families.registry\ntorch.mul(a, b)"))

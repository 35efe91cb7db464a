"""What `inspect` says, for people, of what was found in a teacher and what was refused."""

from __future__ import annotations

from typing import Any

from csa2glmha.core.text import one_line


def found_lines(found: dict[str, Any]) -> list[str]:
    """Whether it is worth it: what share attention and feed-forward networks have, and what is refused."""
    if "attention_share" not in found:
        return []
    counts = "; ".join(f"{count} with {form}" for form, count in found.get("forms", {}).items())
    held = f" ({counts})" if counts else ""
    lines = [
        f"attention that can be converted: {found['attention_share']:.0%} of the MACs, "
        f"{len(found['layers'])} layers{held}"
    ]
    lines += _by_reason("refused", found.get("refused", []))
    wide = found["feed_forward_networks"]
    if wide:
        share = found["feed_forward_share"]
        networks = "1 network" if wide == 1 else f"{wide} networks"
        lines.append(f"feed-forward networks that can be narrowed: {share:.0%} of the MACs, {networks}")
    lines += _by_reason("not to be narrowed", found.get("refused_feed_forwards", []))
    operators = found.get("global_operators", [])
    if operators:
        more = f" and {len(operators) - 3} more" if len(operators) > 3 else ""
        lines.append(
            one_line(f"also sees all pixels, so that tiles differ: {'; '.join(operators[:3])}{more}")
        )
    return [f"  {line}" for line in lines]


def _by_reason(what: str, refused: list[dict[str, str]]) -> list[str]:
    """A line for each reason, with one of the names that it is said of."""
    names: dict[str, list[str]] = {}
    for each in refused:
        names.setdefault(each["reason"], []).append(each["name"] or "the network")
    lines = []
    for reason, having in names.items():
        more = f" and {len(having) - 1} more" if len(having) > 1 else ""
        lines.append(one_line(f"{what}: {having[0]}{more}: {reason}"))
    return lines

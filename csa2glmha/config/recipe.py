"""Recipe files: YAML that holds one value for every option, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node

from csa2glmha.core.errors import UsageError

#: A recipe with every option has some thousand bytes.
_LARGEST_BYTES = 1 << 20
#: Options take single values; a few levels more, so that messages can name what is wrong with a list.
_DEEPEST = 8


def load_recipe(path: Path) -> dict[Any, Any]:
    """What a recipe file holds, names not yet looked at; an empty file holds nothing.

    Raises:
        UsageError: not readable, not YAML, not a mapping, or one that names an option twice.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
        if len(data) > _LARGEST_BYTES:
            raise UsageError(f"recipe {path}: is larger than any recipe; see recipes/ for examples")
        content = yaml.load(data.decode("utf-8"), _Loader)  # a kind of SafeLoader
    except OSError as error:
        raise UsageError(f"recipe {path}: {error.strerror or error}; give the path of a YAML file") from None
    # Not UTF-8, or what PyYAML itself stumbles over: a date that is none, a number without digits.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where is not None else ""
        problem = getattr(error, "problem", None)
        reason = f" ({problem})" if problem else " (not UTF-8)" if isinstance(error, UnicodeError) else ""
        raise UsageError(f"recipe {path}: not valid YAML{line}{reason}; see recipes/ for examples") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"recipe {path}: expected 'option: value' lines, found a {type(content).__name__}")
    return content


class _RefusedError(yaml.MarkedYAMLError):
    """What YAML allows and a recipe does not."""

    def __init__(self, problem: str, found: Any) -> None:
        super().__init__(None, None, problem, found.start_mark)


class _Loader(yaml.SafeLoader):
    """Safe, and refuses what a recipe has no use for.

    Nesting without an end would exhaust the stack, aliases of aliases the memory as soon as they are shown,
    and of two values of one name YAML silently takes the last.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _RefusedError("aliases are of no use here", event)
        self._depth += 1
        try:
            if self._depth > _DEEPEST:
                raise _RefusedError("nested too deeply", event)
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise _RefusedError(f"{name!r} is there twice, first in line {seen[name]}", key)
            seen[name] = line
        return super().construct_mapping(node, deep)

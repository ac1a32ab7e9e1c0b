"""YAML in which the words of a label mapping stay words."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["read_yaml"]

_BOOL, _TEXT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``yes``, ``no``, ``on`` and ``off`` as booleans; below a key ``labels`` they name classes."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        for key, value in node.value:
            if key.value == "labels":
                _as_text(value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(text: str) -> Any:
    """One YAML document, as ``yaml.safe_load`` reads it but for the words of ``labels``. Raises ``yaml.YAMLError``."""
    return yaml.load(text, _Loader)


def _as_text(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode):
        node.tag = _TEXT if node.tag == _BOOL else node.tag
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _as_text(item)
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            for item in pair:
                _as_text(item)

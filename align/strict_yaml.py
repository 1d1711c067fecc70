"""YAML of files and of the command line, in which a key that stands twice is an error."""

from pathlib import Path
from typing import Any

import yaml

from align.errors import ConfigError


def yaml_value(text: str) -> Any:
    """A command-line value read as YAML, so that 1e-5, true, null and [a, b] mean what they say."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


class _Strict(yaml.SafeLoader):
    """YAML in which a key stands once; the standard says so, the library lets the last one win."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice; delete one", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)  # only now: what `<<` brings may be said again
    return loader.construct_mapping(node, deep=True)


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


class _WithFunctions(_Strict):
    """Reads lm-eval's ``!function …`` as plain text."""


_WithFunctions.add_constructor("!function", lambda loader, node: str(node.value))


def strict_yaml(text: str, *, functions: bool = False) -> Any:
    """The content of a YAML text; with ``functions`` lm-eval's ``!function`` is plain text in it.

    Raises:
        yaml.YAMLError: not YAML, or a key that stands twice in a mapping.
    """
    return yaml.load(text, Loader=_WithFunctions if functions else _Strict)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, not a mapping.
    """
    if not path.is_file():
        raise ConfigError(f"no config file at {path}; give --config an existing YAML file")
    try:
        values = strict_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not `key: value` lines")
    return values

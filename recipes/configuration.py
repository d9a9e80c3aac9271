"""YAML files that state only in what they differ from another one.

A file may name another by the key ``base``, relative to its own folder. What it says itself wins; mappings are merged
key by key, everything else is replaced.

What a file says under ``widths`` and ``from_float`` is for :mod:`recipes.compare`, and no setting of a training.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

BASE = "base"
WIDTHS, FROM_FLOAT = "widths", "from_float"
OF_COMPARISONS = (WIDTHS, FROM_FLOAT)
OPTIONS = ("--config", "-c")


def load(path: Path, above: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the settings of a file, its bases included.

    Args:
        path: YAML file.
        above: files that lead to this one by their bases.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is its own base, or does not hold a mapping.
    """
    path = path.resolve()
    chain = " -> ".join(str(file) for file in (*above, path))
    if path in above:
        raise ValueError(f"a file must not be its own base, got {chain}")
    if not path.is_file():
        raise FileNotFoundError(
            f"the file {path} does not exist ({chain}); `base` is relative to the file that names it"
        )
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a mapping such as `model: {{units: 300}}`, got {settings!r}")
    base = settings.pop(BASE, None)
    return settings if base is None else merge(load(path.parent / base, (*above, path)), settings)


def merge(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``settings`` with ``changes``, key by key at every depth.

    Example:
        >>> merge({"model": {"cell": "lstm", "units": 300}}, {"model": {"cell": "gru"}})
        {'model': {'cell': 'gru', 'units': 300}}
    """
    merged = dict(settings)
    for key, value in changes.items():
        before = merged.get(key)
        merged[key] = merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def expand(arguments: Sequence[str]) -> list[str]:
    """Replace configuration files on a command line by what they say, their bases included.

    They are put right behind the subcommand, so that every other option wins over them wherever it stands.

    Args:
        arguments: of the program, beginning with the subcommand.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file cannot be expanded.
    """
    files, others = _split(arguments[1:])
    settings = [{key: value for key, value in load(Path(file)).items() if key not in OF_COMPARISONS} for file in files]
    texts = [json.dumps(setting) for setting in settings]
    return [*arguments[:1], *[word for text in texts for word in (OPTIONS[0], text)], *others]


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of configuration files, and all other arguments."""
    files, others = [], []
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option not in OPTIONS:
            others.append(word)
        elif equals:
            files.append(value)
        else:
            # Without a value, the parser explains what is missing.
            following = next(words, None)
            files.extend([] if following is None else [following])
            others.extend([word] if following is None else [])
    return files, others

"""Rows of Parquet files in memory, without the package `datasets`.

They answer what the recipes ask of a table of `datasets`. Which columns are images and labels is read where `datasets`
writes it, in the metadata of the file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METADATA = b"huggingface"


@dataclass(frozen=True)
class ClassLabel:
    """A column of labels, with the names of their classes."""

    names: Sequence[str]


@dataclass(frozen=True)
class Image:
    """A column of encoded images."""


class ParquetRows:
    """Rows of Parquet files, images encoded.

    Args:
        files: which are read one after the other.

    Raises:
        pyarrow.ArrowInvalid: if a file is not in that format.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        from pyarrow import concat_tables, parquet  # not at the top: folders of images do not need the package

        self._table = concat_tables([parquet.read_table(file, memory_map=True) for file in files])
        self.features: Mapping[str, Any] = _features(self._table.schema)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, key: int | str) -> Any:
        """Return a row by its number, or a column by its name."""
        if isinstance(key, str):
            return self._table[key].to_pylist()
        return {name: self._table[name][key].as_py() for name in self._table.column_names}

    def iter(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yield some rows at a time, as a list of each column."""
        for batch in self._table.to_batches(batch_size):
            yield batch.to_pydict()


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` says about each column; its type where that says nothing."""
    written = json.loads((schema.metadata or {}).get(METADATA, b"{}"))
    features = written.get("info", {}).get("features", {})
    return {field.name: _feature(features.get(field.name, {}), field.type) for field in schema}


def _feature(described: Mapping[str, Any], kind: Any) -> Any:
    made = {"ClassLabel": lambda: ClassLabel(described["names"]), "Image": Image}
    return made.get(described.get("_type", ""), lambda: kind)()

"""Which files a config means: one, a glob, a folder of shards, or what Hugging Face saved."""

from __future__ import annotations

import difflib
import glob
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit.encoders.files import base_name, is_url, join, url_errors
from fusionkit.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow", ".feather")
PACKED = ".gz"  # after one of the first four

_GLOB = re.compile(r"[*?[]")
_STATE, _SPLITS = "state.json", "dataset_dict.json"  # of datasets' save_to_disk


def suffix_of(file: str) -> str:
    """``".csv"`` of ``data/t.csv`` and of ``https://host/t.CSV.gz``."""
    name = base_name(file).lower()
    return os.path.splitext(name.removesuffix(PACKED))[1]


def is_packed(file: str) -> bool:
    """Whether a file's name says that it is compressed as a whole."""
    return base_name(file).lower().endswith(PACKED)


def check_suffix(file: str) -> None:
    """Raise DataError unless the suffix is one of :data:`SUFFIXES`."""
    suffix = suffix_of(file)
    if suffix in SUFFIXES[:4] or (suffix in SUFFIXES and not is_packed(file)):
        return
    raise DataError(
        f"{file!r} is not a table that can be read: its name ends in {suffix!r}. Known: "
        f"{', '.join(SUFFIXES)}; {', '.join(SUFFIXES[:4])} may end in {PACKED} as well."
    )


def may_be_table(file: str) -> None:
    """Raise DataError for what no table can be, without a look at any folder that has no suffix."""
    if suffix_of(file) and not _GLOB.search(file) and not os.path.isdir(os.path.expanduser(file)):
        check_suffix(file)


def find_files(given: str) -> list[str]:
    """The table files of one entry of ``files``, in order.

    Args:
        given: A file or its URL, a glob, a folder of table files of one format, or a folder that
            ``Dataset.save_to_disk`` of Hugging Face's datasets wrote.

    Raises:
        DataError: There is no such file; the message names close ones.
    """
    if is_url(given):
        # A question mark in an address begins its query.
        return _glob_url(given) if "*" in given.partition("::")[0] else [_known(given)]
    path = os.path.expanduser(given)
    if os.path.isfile(path):
        return [_known(path)]
    if os.path.isdir(path):
        return _in_folder(path)
    if _GLOB.search(path):
        found = _natural(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
        if not found:
            raise DataError(f"No file is called {given}. Correct `files` in the config.")
        return [_known(file) for file in found]
    check_suffix(path)
    raise DataError(_not_found(os.path.abspath(path)))


def saved_splits(given: str) -> Mapping[str, str] | None:
    """Folder by split of what ``DatasetDict.save_to_disk`` wrote; None if it is none.

    Raises:
        DataError: The list of its splits cannot be read.
    """
    path = os.path.expanduser(given)
    if is_url(given) or not os.path.isfile(os.path.join(path, _SPLITS)):
        return None
    names = _read_json(os.path.join(path, _SPLITS), "splits")
    return {str(name): os.path.join(path, str(name)) for name in names}


def _in_folder(path: str) -> list[str]:
    if os.path.isfile(os.path.join(path, _STATE)):
        shards = _read_json(os.path.join(path, _STATE), "_data_files")
        return [os.path.join(path, shard["filename"]) for shard in shards]
    names = [name for name in os.listdir(path) if not name.startswith((".", "_"))]
    found = _natural(name for name in names if suffix_of(name) in SUFFIXES)
    kinds = sorted({suffix_of(name) for name in found})
    if len(kinds) == 1:
        return [os.path.join(path, name) for name in found]
    if kinds:
        raise DataError(
            f"The folder {path} holds tables of several formats: {', '.join(kinds)}. Write which "
            f'ones as a glob: files: "{join(path, f"*{kinds[0]}")}".'
        )
    raise DataError(f"The folder {path} holds no table. Known: {', '.join(SUFFIXES)}.")


def _glob_url(given: str) -> list[str]:
    from fsspec.core import url_to_fs  # late: most tables are local

    inner, chain, archive = given.partition("::")
    with url_errors(given):
        system, pattern = url_to_fs(given)
        found = _natural(system.glob(pattern))
    if not found:
        raise DataError(f"No file is called {given}. Correct `files` in the config.")
    scheme = inner.partition("://")[0]
    if chain:
        return [_known(f"{scheme}://{file}{chain}{archive}") for file in found]
    return [_known(system.unstrip_protocol(file)) for file in found]


def _natural(names: Any) -> list[str]:
    """Sorted, ``part-2`` before ``part-10``."""
    return sorted(
        names,
        key=lambda name: [
            int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))
        ],
    )


def _known(file: str) -> str:
    check_suffix(file)
    return file


def _read_json(path: str, key: str) -> Sequence[Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found: Sequence[Any] = json.load(file)[key]
        return found
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} is not what save_to_disk writes: {type(error).__name__}: {error}. "
            f"Save the data set again."
        ) from error


def _not_found(path: str) -> str:
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return f"{path} does not exist, nor does its folder. Correct `files` in the config."
    near = difflib.get_close_matches(name, os.listdir(folder))
    hint = f" Close names in that folder: {', '.join(near)}." if near else ""
    return f"{path} does not exist.{hint} Correct `files` in the config."

"""Group the scans that no split or fold may divide: near-duplicates, blocks of file numbers, or patients."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import DataError, UsageError

from .duplicates import Hashes, groups
from .folder import Scan
from .order import FileOrder, numbered

NEAR_DUPLICATES, BLOCKS = "near-duplicates", "blocks"
BLOCK_SIZE = 40  # numbers; patients of the collections that were measured have about 10 to 40 slices


@dataclass(frozen=True)
class GroupRule:
    """The value of ``--groups``. Near-duplicates are always kept together.

    ``block`` is the number of consecutive file numbers in a group, 0 for no blocks. ``patients`` is a CSV file with
    the patient of each scan.
    """

    block: int = 0
    patients: Path | None = None

    def __str__(self) -> str:
        """The rule as ``--groups`` takes it, with a file by its name."""
        if self.patients:
            return self.patients.name
        return f"{BLOCKS}:{self.block}" if self.block else NEAR_DUPLICATES


@dataclass(frozen=True)
class Grouping:
    """The group of each scan (N,), and a description of the rule that was applied."""

    group: NDArray[np.intp]
    text: str


def parse_groups(text: str | Path) -> GroupRule:
    """Read the value of ``--groups``: ``near-duplicates``, ``blocks``, ``blocks:SIZE``, or the path of a CSV file.

    Raises UsageError that lists the choices.
    """
    word, _, size = str(text).partition(":")
    if str(text) == NEAR_DUPLICATES:
        return GroupRule()
    if word == BLOCKS:
        if not size and str(text) == BLOCKS:
            return GroupRule(BLOCK_SIZE)
        if not size.isdecimal() or int(size) < 2:
            raise UsageError(
                f"--groups blocks:SIZE takes a whole number from 2. Received: {str(text)!r}",
                f"For example: --groups blocks:{BLOCK_SIZE}",
            )
        return GroupRule(int(size))
    if Path(text).is_file():
        return GroupRule(patients=Path(text))
    raise UsageError(
        f"--groups: no such rule or file: {str(text)!r}",
        f"Choose {BLOCKS}, {BLOCKS}:SIZE, {NEAR_DUPLICATES}, or a CSV file with the columns file,group",
    )


def read_patients(path: Path, scans: Sequence[Scan]) -> list[str]:
    """Read each scan's patient from a CSV file with the columns ``file`` (relative to the data folder) and ``group``.

    Raises
    ------
    DataError
        The file cannot be read, lacks a column, lacks a scan, gives a scan two groups, or has groups that differ only
        in case or Unicode form.
    """
    group_of: dict[str, str] = {}
    spelling: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            for row in csv.DictReader(file):
                # People type these tables: a space that nobody sees must not divide a patient.
                name, group = ((row[column] or "").strip() for column in ("file", "group"))
                if not group:
                    continue
                known = spelling.setdefault(unicodedata.normalize("NFKC", group).casefold(), group)
                if known != group:
                    raise DataError(
                        f"{path}: the groups {known!r} and {group!r} differ only in case or Unicode form",
                        "Write a group in one way, and give different groups different names",
                    )
                if group_of.setdefault(name, group) != group:
                    raise DataError(f"{path}: {name!r} has two groups: {group_of[name]} and {group}", "Give one")
    except KeyError as error:
        raise DataError(
            f"{path}: no column {error}", "The first line must be: file,group, with a comma between the columns"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot read ({error})", "Give a CSV file with the columns file,group") from error
    missing = [scan.file for scan in scans if scan.file not in group_of]
    if missing:
        raise DataError(f"{path}: no group for {len(missing)} scans, for example {missing[0]!r}", "List every scan")
    return [group_of[scan.file] for scan in scans]


def group_scans(
    scans: Sequence[Scan],
    hashes: Hashes,
    order: Sequence[FileOrder],
    rule: GroupRule,
    patients: Sequence[str] | None = None,
) -> Grouping:
    """Apply a rule. Blocks are used only in the class folders in which the order of files carries identity.

    A block has consecutive numbers of one class folder and one prefix of file names. A file without a number is a
    group of its own, as is every file of the other folders, unless it has near-duplicates.
    """
    joined = f"joined with {NEAR_DUPLICATES}"
    if rule.patients:
        return Grouping(groups(hashes, patients=patients), f"patients in {rule.patients.name}, {joined}")
    if not rule.block:
        return Grouping(groups(hashes), NEAR_DUPLICATES)
    ordered = [folder.folder for folder in order if folder.carries_identity]
    if not ordered:
        return Grouping(groups(hashes), f"{NEAR_DUPLICATES} (file order carries no identity, so there are no blocks)")
    keys = [_block(scan, rule.block) if scan.folder in ordered else scan.file for scan in scans]
    text = f"blocks of {rule.block} numbers in {', '.join(ordered)}, {joined}"
    return Grouping(groups(hashes, patients=keys), text)


def _block(scan: Scan, size: int) -> str:
    name = numbered(scan.file)
    return scan.file if name is None else f"{scan.folder}/{name[0]}\0{name[1] // size}"

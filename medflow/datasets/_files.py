"""Finding the file that a table's cell means, among files that were listed once. Nothing outside them is ever found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from medflow.errors import DataError


class Finder:
    """Looks cells up among ``paths``, which are relative to the data root."""

    def __init__(self, paths: Iterable[PurePosixPath]) -> None:
        self._by_name: dict[str, list[PurePosixPath]] = defaultdict(list)
        self._by_stem: dict[str, list[PurePosixPath]] = defaultdict(list)
        for path in paths:
            self._by_name[path.name].append(path)
            self._by_stem[path.stem].append(path)

    def find(self, cell: str) -> PurePosixPath | None:
        """The file that ``cell`` names: a path, with or without file type, or a file name; None where there is none.

        Folders that both state must agree, from the end: ``b/x.png`` is never ``a/x.png``. A cell with ``..``
        means nothing here. Raises DataError where several files fit and none is exactly the cell.
        """
        wanted = PurePosixPath(cell.replace("\\", "/").rstrip("/"))
        parts = [part for part in wanted.parts if part != "/"]
        if not parts or ".." in parts:
            return None
        found = [path for path in self._by_name.get(parts[-1], ()) if _agree(parts, path.parts)]
        if not found:
            stems = self._by_stem.get(parts[-1], ())
            found = [path for path in stems if _agree(parts, (*path.parts[:-1], path.stem))]
        exact = [path for path in found if path == wanted or path.with_suffix("") == wanted]
        return _only(cell, exact or found)


def _agree(cell: list[str], path: tuple[str, ...]) -> bool:
    length = min(len(cell), len(path))
    return tuple(cell[-length:]) == path[-length:]


def _only(cell: str, found: list[PurePosixPath]) -> PurePosixPath | None:
    if len(found) > 1:
        first, second = sorted(found)[:2]
        raise DataError(
            f"{cell!r} can mean two files: {first} and {second}",
            hint="write the path from the source's folder into the table, or set declare.images to the folder meant",
        )
    return found[0] if found else None

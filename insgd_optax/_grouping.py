"""Groups of arrays that one operation can take together."""

from collections.abc import Hashable, Sequence


def grouped(
    kinds: Sequence[Hashable], entries: Sequence[int], most_entries: float
) -> list[list[int]]:
    """The indices of items of one kind together, in the order of the first of each.

    Args:
        kinds: what the items of a group have in common.
        entries: the number of entries of each item.
        most_entries: the most entries of a group of two or more.
    """
    found: list[list[int]] = []
    latest: dict[Hashable, tuple[list[int], int]] = {}
    for i, (kind, size) in enumerate(zip(kinds, entries, strict=True)):
        group, total = latest.get(kind, ([], 0))
        if not group or total + size > most_entries:
            group, total = [], 0
            found.append(group)
        group.append(i)
        latest[kind] = group, total + size
    return found

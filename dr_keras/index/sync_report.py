"""What a sync did, as counts and as lines to print."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dr_keras.data.folders import Trouble

MAX_LINES = 10  # that a report lists for each kind of problem


@dataclass(frozen=True)
class SyncReport:
    """What was done.

    Attributes:
        added, updated, unchanged, removed: How many images were added, embedded again, left as they were, and removed.
        unread: For each file that looks like an image but could not be read, the reason, by id.
        missing: The ids of images whose files are gone from the folder.
        unlisted: Folders and files that could not be accessed, with the reason; the index keeps what is in them.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    unread: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()
    unlisted: Sequence[Trouble] = ()

    @property
    def skipped(self) -> int:
        """How many files could not be read."""
        return len(self.unread)

    def __str__(self) -> str:
        parts = [f"{self.added:,} added", f"{self.updated:,} updated", f"{self.unchanged:,} unchanged"]
        if self.removed:
            parts.append(f"{self.removed:,} removed")
        if self.missing and not self.removed:
            parts.append(f"{len(self.missing):,} missing")
        if self.unread:
            parts.append(f"{self.skipped:,} could not be read")
        if self.unlisted:
            parts.append(f"{len(self.unlisted):,} could not be looked at")
        return ", ".join(parts)

    def details(self) -> list[str]:
        """Lines that name what `str` only counts, up to `MAX_LINES` of each kind."""
        by_reason = defaultdict(list)
        for id, reason in self.unread.items():
            by_reason[reason].append(id)
        lines = [
            f"could not be read: {and_more(ids)}{':' if len(ids) > 1 else ''} {reason}"
            for reason, ids in by_reason.items()
        ]
        lines = _first(sorted(lines), "reasons")
        lines += [f"could not be looked at: {name}: {reason}" for name, reason in self.unlisted[:MAX_LINES]]
        if self.missing and not self.removed:
            lines += _first([f"missing: {id}" for id in self.missing], "images whose files are gone")
            lines.append("--remove-missing removes those that are missing")
        return lines


def and_more(ids: Sequence[str]) -> str:
    """The first id, and how many more there are."""
    return ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1:,} more"


def _first(lines: list[str], of_what: str) -> list[str]:
    return lines[:MAX_LINES] + ([f"and {len(lines) - MAX_LINES:,} more {of_what}"] if len(lines) > MAX_LINES else [])

"""The state of each version that follows from the decisions about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .history import Entry

CHAMPION, PREVIOUS_CHAMPION = "champion", "previous_champion"
PENDING, APPROVED, REJECTED, RETIRED = "pending", "approved", "rejected", "retired"
MOVES = {
    "approve": (PENDING, APPROVED),
    "reject": (PENDING, REJECTED),
    "retire": (APPROVED, RETIRED),
}
STATUS_TAG = "review_status"


def moves_from(state: str, expires: str) -> list[str]:
    """Return the decisions about a version in a state, whose approval may have a last day."""
    renewed = ["approve"] if state == APPROVED and expires else []
    return renewed + [decision for decision, (before, _) in MOVES.items() if before == state]


@dataclass(frozen=True)
class Standing:
    """Which version has which state, and which serves.

    A version that is superseded stays `approved`: the state is the judgement on it, the alias says
    what serves. So a rollback needs no new judgement, and `retired` always means that somebody
    retired it.

    Attributes:
        states: Of every version about which there is an entry; any other is pending.
        champion: The version that serves, or None.
        former: Versions that served and may again, the latest first; the first of them is
            `previous_champion`.
    """

    states: Mapping[int, str]
    champion: int | None
    former: tuple[int, ...]

    @property
    def aliases(self) -> dict[str, int]:
        """The version of `champion` and of `previous_champion`, where there is one."""
        both = {CHAMPION: self.champion, PREVIOUS_CHAMPION: next(iter(self.former), None)}
        return {alias: version for alias, version in both.items() if version is not None}

    def state_of(self, version: int) -> str:
        """Return a version's state."""
        return self.states.get(version, PENDING)

    def after(self, decision: str, version: int) -> Standing:
        """Return the standing once a decision has taken effect.

        approve: the version is champion, and the one before it is the previous champion.
        reject, retire: the version serves no longer; with the champion its alias goes.
        rollback: the previous champion is champion, and the champion the previous one. Twice is
            as before; to go further back, retire the version that was left.
        """
        served = () if self.champion is None else (self.champion,)
        if decision == "rollback":
            former = _without((*served, *self.former), version)
            return replace(self, champion=version, former=former)
        states = {**self.states, version: MOVES[decision][1]}
        if decision == "approve":
            return Standing(states, version, _without((*served, *self.former), version))
        champion = None if self.champion == version else self.champion
        return Standing(states, champion, _without(self.former, version))


def _without(versions: Iterable[int], version: int) -> tuple[int, ...]:
    """Return the versions in their order, each once, but for one."""
    return tuple(each for each in dict.fromkeys(versions) if each != version)


def replay(entries: list[Entry], found: Mapping[str, int] | None = None) -> Standing:
    """Return what stands after the entries.

    Aliases from before the first decision, `found` where there is none yet, are taken as they are:
    nobody here has judged those versions, but they serve.
    """
    before = entries[0].aliases_before if entries else found or {}
    previous = before.get(PREVIOUS_CHAMPION)
    standing = Standing({}, before.get(CHAMPION), () if previous is None else (previous,))
    for entry in entries:
        standing = standing.after(entry.decision, entry.version)
    return standing

"""An item's states: whatever programs do, one follows on another only as the table says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from microbatch._core import fifo, line, room
from microbatch._core.entry import ENDED, FOLLOWING, NEW, SHARING, Entry, State

sys.path.append(str(Path(__file__).parents[1] / "contract"))  # for the fuzzer's programs

from fuzz_program import drawn
from fuzz_run import LOOPS, recorded


class Watched(Entry):
    """An entry that notes what followed on what."""

    __slots__ = ("_now",)
    seen: ClassVar[set[tuple[State, State]]] = set()

    @property
    def state(self) -> State:  # type: ignore[override]
        return self._now

    @state.setter
    def state(self, state: State) -> None:
        before = getattr(self, "_now", None)
        if before is not None:
            self.seen.add((before, state))
        self._now = state


@pytest.mark.parametrize("loop", LOOPS)
def test_states_follow_one_another_as_the_table_says(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is what a newcomer reads; drawn programs with all settings at once go through all of it."""
    monkeypatch.setattr(fifo, "Entry", Watched)
    monkeypatch.setattr(line, "Entry", Watched)
    monkeypatch.setattr(room, "Entry", Watched)
    monkeypatch.setattr(Watched, "seen", set())
    for seed in range(400):
        recorded(drawn(seed), loop)
    told = {(before, after) for before, following in FOLLOWING.items() for after in following}
    assert Watched.seen - {(ENDED, ENDED)} == told


def test_every_state_but_the_last_ones_goes_on_and_all_can_be_reached() -> None:
    """A state that nothing leads to, or that leads nowhere by mistake, is a state too many."""
    assert set(FOLLOWING) == set(State)
    assert {state for state, following in FOLLOWING.items() if not following} == {ENDED, SHARING}
    reached: set[Any] = set().union(*FOLLOWING.values())
    assert reached == set(State) - {NEW}

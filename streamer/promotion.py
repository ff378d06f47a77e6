"""A generation that catches up beside the one that answers, to take its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from schemas.config import Config
from streamer.shards import Generation, Shard


class Promotion:
    """Shards of the coming generation, one for each that serves.

    Args:
        generation: what takes over.
        config: all settings.
        start: begins a shard aside, given its number and its generation.

    Attributes:
        shards: number -> shard.
        letters_at: number -> from where in the dead-letter topic there may be letters of records still to be applied.
        refresh: whether the shards begin as those that serve, encoded anew.
        began: monotonic seconds of its beginning.
    """

    def __init__(
        self,
        generation: Generation,
        config: Config,
        start: Callable[[int, Generation], Shard],
        *,
        refresh: bool = False,
    ) -> None:
        self.generation = generation
        self.refresh = refresh
        self.began = time.monotonic()
        self.shards: dict[int, Shard] = {}
        self.letters_at: dict[int, int | None] = {}
        self._config = config
        self._start = start

    def follow(self, serving: Iterable[int]) -> None:
        """Begin the shards that serve and are not here yet."""
        for number in serving:
            if number not in self.shards:
                self.shards[number] = self._start(number, self.generation)

    def remove(self, numbers: Collection[int]) -> list[Shard]:
        """Give up some shards; the caller ends them."""
        return [self.shards.pop(number) for number in numbers if number in self.shards]

    def error(self) -> BaseException | None:
        """What ended one of the shards, if anything did."""
        return next((shard.error for shard in self.shards.values() if shard.error is not None), None)

    def caught_up(self, serving: Mapping[int, Shard]) -> bool:
        """Whether every shard is near its source's end and waits there for the live one, which is no more behind it.

        Then all letters of what was applied here are in the topic, and those after ``letters_at`` are all that are
        there of what was not.
        """
        near = self._config.writer.batch_records
        there = all(shard.ready and sum(shard.lag().values()) <= near for shard in self.shards.values())
        for number, shard in self.shards.items():
            # The live one's letters first: what it applies meanwhile makes it look further, never less far.
            live, letters_at = serving[number], serving[number].letters_at
            if live.index is not None and not _beyond(live.offsets, shard.offsets):
                self.letters_at[number] = letters_at
        held = there and self.letters_at.keys() >= self.shards.keys()
        for shard in self.shards.values():
            shard.held = held
        return held and all(
            shard.waiting and not _beyond(shard.offsets, serving[number].offsets)
            for number, shard in self.shards.items()
        )

    def status(self) -> dict[str, Any]:
        """What ``/status`` says of it."""
        return {
            "generation": self.generation.name,
            "state": "re-encoding" if self._reencoding() else "catching up",
            "refresh": self.refresh,
            "shards": [shard.status() for shard in list(self.shards.values())],
        }

    def _reencoding(self) -> bool:
        return any(shard.state == "re-encoding" for shard in list(self.shards.values()))

    def end(self, state: str, error: BaseException | None = None) -> dict[str, Any]:
        """What ``/status`` says once it is over."""
        return {
            "generation": self.generation.name,
            "state": state,
            "refresh": self.refresh,
            "error": None if error is None else str(error),
        }


def _beyond(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether ``one`` has applied anything that ``other`` has not."""
    return any(at > other.get(name, 0) for name, at in one.items())

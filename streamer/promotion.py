"""A generation that catches up beside the one that answers, to take its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
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
    """

    def __init__(self, generation: Generation, config: Config, start: Callable[[int, Generation], Shard]) -> None:
        self.generation = generation
        self.shards: dict[int, Shard] = {}
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

    def caught_up(self) -> bool:
        """Whether every shard is at its source's end but for what came in the last moments."""
        near = self._config.writer.batch_records
        return all(shard.ready and sum(shard.lag().values()) <= near for shard in self.shards.values())

    def status(self) -> dict[str, Any]:
        """What ``/status`` says of it."""
        return {
            "generation": self.generation.name,
            "state": "catching up",
            "shards": [shard.status() for shard in self.shards.values()],
        }

    def end(self, state: str, error: BaseException | None = None) -> dict[str, Any]:
        """What ``/status`` says once it is over."""
        return {"generation": self.generation.name, "state": state, "error": None if error is None else str(error)}

"""What the daemon answers over HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from indexer.retrieval.readers import ViewReader
from indexer.store import now_ms
from schemas.config import Config
from schemas.errors import NotFoundError, StoreError, UsageError
from schemas.queries import Question, wrong
from streamer.checkpointing import shown, target_of
from streamer.http import Routes
from streamer.publishing import shown_all
from streamer.querying import ask, settings

if TYPE_CHECKING:
    from streamer.daemon import Daemon
    from streamer.shards import Shard


def routes(config: Config, daemon: Daemon) -> Routes:
    """All paths of a daemon."""
    answers = _Answers(config, daemon)
    posts = {
        "/query": answers.query,
        "/compact": answers.compact,
        "/checkpoint": answers.checkpoint,
        "/snapshot": answers.snapshot,
        "/promote": answers.promote,
        "/refresh": answers.refresh,
    }
    return Routes(answers.live, answers.ready, answers.status, posts)


class _Answers:
    """Runs on the HTTP server's threads beside the daemon's, and only looks, but for the posts."""

    def __init__(self, config: Config, daemon: Daemon) -> None:
        self._config = config
        self._daemon = daemon

    def _shards(self) -> list[Shard]:
        return [shard for _, shard in sorted(self._daemon.shards.items())]

    def live(self) -> tuple[bool, dict[str, Any]]:
        """Whether the loops turn."""
        turned = [time.monotonic() - self._daemon.turned_at, *(shard.turned_s() for shard in self._shards())]
        return max(turned) < self._config.http.live_after_s, {"seconds_since_turn": round(max(turned), 3)}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether every shard that is ours has caught up once, and the kernels are compiled."""
        shards, warmed = self._shards(), self._daemon.warmed
        caught_up = self._daemon.caught_up
        states = {str(shard.number): shard.state for shard in shards}
        told = {"caught_up": caught_up, "warmed": warmed, "lag": sum(_lag(shards).values()), "shards": states}
        return caught_up and warmed, told

    def status(self) -> dict[str, Any]:
        """What this process does."""
        daemon, shards = self._daemon, self._shards()
        rows = [shard.status() for shard in shards]
        counted = {
            name: sum(row.get(name, 0) for row in rows)
            for name in ("records", "items_live", "out_of_bounds", "splits", "merges")
        }
        promotion = daemon.promotion
        return counted | {
            "generation": daemon.serving.name,
            "model_hash": daemon.serving.model.manifest.model_hash,
            "seconds_since_batch": min((row.get("seconds_since_batch", 0.0) for row in rows), default=0.0),
            "alive": self.live()[0],
            "progressing": all(row.get("progressing", True) for row in rows),
            "lag": _lag(shards),
            "offsets": {name: at for row in rows for name, at in row.get("offsets", {}).items()},
            "shards": rows,
            "promotion": daemon.promoted if promotion is None else promotion.status(),
        }

    def query(self, document: dict[str, Any]) -> dict[str, Any]:
        """Retrieve from the live views of all shards here."""
        try:
            question = Question.model_validate(document)
        except ValidationError as error:
            raise wrong(error) from None
        shards = self._shards()  # once: of one generation, and its model
        open_here = {shard.number: shard.index for shard in shards}
        readers = {number: ViewReader(index.view) for number, index in open_here.items() if index is not None}
        if not readers:
            raise StoreError("no shard is open here yet; see /readyz")
        wanted = settings(question, self._config.retrieval)
        return ask(readers, question, wanted, now_ms(), shards[0].generation.model.encode).model_dump(mode="json")

    def compact(self, _document: dict[str, Any]) -> dict[str, Any]:
        """Rebalance all shards here until idle."""
        pipelines = [shard.pipeline for shard in self._shards()]
        done = [pipeline.compactor.run_until_idle() for pipeline in pipelines if pipeline is not None]
        return {name: sum(getattr(each, name) for each in done) for name in ("splits", "merges", "marks", "moved")}

    def checkpoint(self, document: dict[str, Any]) -> dict[str, Any]:
        """Take a checkpoint of every shard here."""
        url = document.get("url")
        target = target_of(self._config, url)
        return {"checkpoints": [shown(self._daemon.backups.take(shard, url), target) for shard in self._shards()]}

    def snapshot(self, document: dict[str, Any]) -> dict[str, Any]:
        """Publish a snapshot of every shard here."""
        kind = document.get("kind")
        if kind not in ("full", "delta"):  # it may be anything, also what has no hash
            raise UsageError('give {"kind": "full"} or {"kind": "delta"}')
        return shown_all([self._daemon.publishing.take(shard, kind) for shard in self._shards()])

    def promote(self, document: dict[str, Any]) -> dict[str, Any]:
        """Let a generation catch up and take over; ``/status`` tells how far it is."""
        name = document.get("generation")
        if not isinstance(name, str):
            raise NotFoundError('give {"generation": "NAME"}')
        return self._daemon.promote(name).status()

    def refresh(self, document: dict[str, Any]) -> dict[str, Any]:
        """Encode everything anew with another model beside what serves, and switch; ``/status`` tells how far it is."""
        path = document.get("model")
        if not isinstance(path, str):
            raise UsageError('give {"model": "DIRECTORY"}')
        return self._daemon.refresh(Path(path)).status()


def _lag(shards: list[Shard]) -> dict[str, int]:
    return {name: behind for shard in shards for name, behind in shard.lag().items()}

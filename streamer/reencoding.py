"""A shard of a coming generation made of the one that serves: an image of its store, encoded anew.

The work is done by a process of its own at low priority (:mod:`streamer.reencode`), so that the daemon has its
interpreter and its cores for events and requests; it ends when the daemon does. The shard's store appears by a rename,
whole or not at all.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import orjson
import structlog

from indexer.durable import sync_path
from indexer.failpoints import failpoint
from indexer.reencoding import reencode
from indexer.store import Store, is_there, store_path
from schemas.config import Config
from schemas.errors import StoreError
from schemas.refresh import Refreshed
from streamer.generations import dead_letter_path, encoder_of, store_meta
from streamer.metrics import Metrics
from streamer.shards import Generation, Shard

log = structlog.get_logger(__name__)

_LOOK_S: Final = 0.05


class Reencoding:
    """Makes the shards of a coming generation, one after the other. Its call may come from several threads.

    Args:
        config: all settings.
        generation: what is made.
        serving: the shard of a number that serves, if one does.
        metrics: times them.
    """

    def __init__(
        self, config: Config, generation: Generation, serving: Callable[[int], Shard | None], metrics: Metrics
    ) -> None:
        self._config = config
        self._generation = generation
        self._serving = serving
        self._metrics = metrics
        self._turn = threading.Lock()

    def __call__(self, number: int, stopped: Callable[[], bool]) -> None:
        """Make a shard's store, unless it is there or ``stopped`` says so meanwhile.

        Raises:
            StoreError: it could not be made; nothing is left of it then.
        """
        while not self._turn.acquire(timeout=_LOOK_S):
            if stopped():
                return
        try:
            path = store_path(self._config.data_dir, self._generation.name, number)
            if is_there(path):
                return
            while not stopped():
                serving = self._serving(number)
                if serving is not None and serving.index is not None:
                    self._make(number, serving, stopped)
                    return
                time.sleep(_LOOK_S)
        finally:
            self._turn.release()

    def _make(self, number: int, serving: Shard, stopped: Callable[[], bool]) -> None:
        failpoint("refresh.begun")
        image = image_path(self._config, self._generation.name, number)
        shutil.rmtree(image, ignore_errors=True)  # of a process that was killed here
        try:
            with serving.held_open() as index:
                index.store.checkpoint(image)
            failpoint("refresh.linked")
            done = self._beside(number, serving.generation.name, stopped)
        finally:
            shutil.rmtree(image, ignore_errors=True)
        if done is not None:
            self._metrics.refresh_seconds.labels("shard").observe(done.seconds)
            log.info("shard_reencoded", shard=number, generation=self._generation.name, **done.model_dump(mode="json"))

    def _beside(self, number: int, before: str, stopped: Callable[[], bool]) -> Refreshed | None:
        """Have it done by another process; None if it was stopped."""
        told = {
            "config": self._config.model_dump(mode="json", exclude={"kafka"}),
            "generation": self._generation.name,
            "before": before,
            "shard": number,
        }
        with subprocess.Popen(
            [sys.executable, "-m", "streamer.reencode"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            if process.stdin is None or process.stdout is None:
                raise StoreError("the process that re-encodes has no input or output")
            try:
                process.stdin.write(orjson.dumps(told) + b"\n")
                process.stdin.flush()
                while process.poll() is None:
                    if stopped():
                        return None
                    time.sleep(_LOOK_S)
                answer = process.stdout.read()
            except BrokenPipeError:
                answer = b""  # it ended before it was told
            finally:
                process.kill()
        if process.returncode:
            raise StoreError(f"shard {number} could not be encoded anew: {_reason(process.returncode, answer)}")
        return Refreshed.model_validate_json(answer)


def _reason(code: int, answer: bytes) -> str:
    try:
        return str(orjson.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"the process that did it {ended}; ask for the refresh again, it goes on"


def image_path(config: Config, generation: str, number: int) -> Path:
    """Where the image of a shard is worked on."""
    path = store_path(config.data_dir, generation, number)
    return path.with_name(f"{path.name}.partial")


def make_of_image(
    config: Config, before: str, generation: Generation, number: int, progress: Callable[[int], None] = lambda _: None
) -> Refreshed:
    """Make an image, at :func:`image_path`, the shard's store; it gets its name when it is whole.

    Args:
        config: all settings.
        before: the generation that it was taken of.
        generation: what is made.
        number: the shard's.
        progress: told items as they are encoded.

    Raises:
        StoreMismatchError, StoreCorruptError: the image cannot become one.
        StoreError: the disk refuses.
    """
    image = image_path(config, generation.name, number)
    model = generation.model
    meta = store_meta(model, generation.name, config.counters.half_lives_s)
    done = reencode(image, meta, model.codewords, encoder_of(model), config, progress)
    try:
        _carry_letters(config, before, generation.name, number, image)
        failpoint("refresh.filed")
        for path in (*image.iterdir(), image):
            sync_path(path)
        into = store_path(config.data_dir, generation.name, number)
        if into.is_dir() and not is_there(into):  # of a process that was killed while it made an empty one
            shutil.rmtree(into)
        image.rename(into)
        sync_path(into.parent)
    except OSError as error:
        raise StoreError(f"cannot put {image} into its place: {error}; free disk space") from error
    failpoint("refresh.renamed")
    return done


def _carry_letters(config: Config, before: str, generation: str, number: int, image: Path) -> None:
    """Where letters go to a file each generation has its own: those of what the image has applied."""
    source, into = (dead_letter_path(config.data_dir, name, number) for name in (before, generation))
    if not source.exists():
        return
    with Store.open(image) as store:
        size = store.totals().dead_letter_position
    with source.open("rb") as file:
        into.write_bytes(file.read(size or 0))
    sync_path(into)

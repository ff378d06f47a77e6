"""Refreshes that nobody has to ask for: a newer artifact in ``model.follow``, and what a killed process left undone."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

import structlog

from schemas.config import Config
from schemas.errors import FacetstreamError
from streamer.generations import drop_generation, model_path
from streamer.refreshing import drop_served, manifest_of, unfinished_generations, was_built_with

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.daemon import Daemon

log = structlog.get_logger(__name__)

_LOOK_S: Final = 0.5
_AGAIN_S: Final = 30.0
"""A refresh that failed, or could not begin, is tried again."""
_CLOSE_S: Final = 2.0


class Following:
    """Looks on a thread of its own, so that a slow disk costs neither events nor the membership.

    What serves goes on whatever happens here. A model that some generation was built with is not followed again: after
    a rollback the next one is waited for.

    Args:
        config: all settings.
        daemon: whose index is refreshed.
    """

    def __init__(self, config: Config, daemon: Daemon) -> None:
        self._config = config
        self._daemon = daemon
        self._stop = threading.Event()
        self._begun: str | None = None
        self._ended: dict[str, Any] | None = None
        self._told = False
        self._not_before = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look."""
        self._thread = threading.Thread(target=self._run, name="following", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stop.set()

    def close(self) -> None:
        """Wait a little for what is under way."""
        self.stop()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                self._turn()
            except FacetstreamError as error:
                log.warning("refresh_not_begun", error=str(error), again_s=_AGAIN_S)
                self._not_before = time.monotonic() + _AGAIN_S
            except Exception:
                log.exception("refresh_not_begun", again_s=_AGAIN_S)  # a defect must not end the following for good
                self._not_before = time.monotonic() + _AGAIN_S

    def _turn(self) -> None:
        daemon = self._daemon
        promotion = daemon.promotion  # first: once there is none, what became of it is known
        self._note_failure()
        if time.monotonic() < self._not_before or promotion is not None or not daemon.caught_up:
            return
        with daemon.promoting:  # what another thread has begun and not got far with must not pass for left behind
            if daemon.promotion is not None:
                return
            if self._begun is not None:
                if self._config.model.follow is not None:
                    drop_served(self._config.data_dir)
                self._begun = None
            artifact = self._newer() or self._unfinished()
            if artifact is not None:
                self._begun = daemon.refresh(artifact).generation.name

    def _note_failure(self) -> None:
        """What failed is not begun again at once, whoever had asked for it."""
        before, self._ended = self._ended, self._daemon.promoted
        ended = self._ended
        if ended is None or ended is before or not ended["refresh"] or ended["state"] != "failed":
            return
        self._not_before = time.monotonic() + _AGAIN_S
        if ended["generation"] == self._begun:
            self._begun = None

    def _newer(self) -> Path | None:
        """The newest artifact that is followed, if no generation was built with it."""
        from model_runtime.published import newest  # noqa: PLC0415  # loads torch, which reading commands do without

        follow = self._config.model.follow
        found = None if follow is None else newest(follow)
        if found is None:
            if follow is not None and not self._told:
                log.warning("nothing_to_follow", directory=str(follow), why="no artifact NAME-0001 is there yet")
            self._told = True
            return None
        return None if was_built_with(self._config.data_dir, manifest_of(found)) else found

    def _unfinished(self) -> Path | None:
        """The model of a refresh that a killed process had begun."""
        data_dir = self._config.data_dir
        for name in unfinished_generations(data_dir):
            own = model_path(data_dir, name)
            if own.exists():
                return own
            drop_generation(data_dir, name)  # killed before it had its model
        return None

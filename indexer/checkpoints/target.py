"""Where checkpoints lie: a local directory, or whatever fsspec reaches. Paths are relative to it, with ``/``."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from indexer.durable import sync_path
from schemas.errors import ConfigError, StoreError

_CHUNK: Final = 1 << 20


class CheckpointTarget:
    """A place for checkpoints. Safe from any thread.

    Writing is atomic: a reader sees a file whole or not at all, in a local directory also after a power loss.

    Args:
        url: a path, or an fsspec URL; what it needs to log in comes from its own environment variables.
        what: what lies there, for messages; the section of the configuration that names it.

    Attributes:
        hashes: shard folder -> (name, size, mtime, inode) -> SHA-256, so that a file is hashed once.

    Raises:
        ConfigError: if nothing serves the URL.
    """

    def __init__(self, url: str | Path, what: str = "checkpoints") -> None:
        try:
            self._fs, root = fsspec.core.url_to_fs(str(url))
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{what}.url {str(url)!r}: {error}; give a directory or an fsspec URL") from error
        self.url = str(url)
        self._what = what
        self._root = root.rstrip("/")
        self._local = Path(root) if isinstance(self._fs, LocalFileSystem) else None
        self.hashes: dict[str, dict[tuple[str, int, int, int], str]] = {}

    def __str__(self) -> str:
        return self.url

    @contextmanager
    def _doing(self, what: str, path: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each of fsspec's file systems raises what its library does
            if isinstance(error, FileNotFoundError) and what == "read":
                raise
            raise StoreError(f"cannot {what} {path or '.'} in {self._what} {self.url}: {error}") from error

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def put(self, source: Path, path: str) -> None:
        """Copy a local file to ``path``. Not a link: damage to the one must not reach the other.

        Raises:
            StoreError: here and below, if the target refuses.
        """
        with self._doing("write", path):
            if self._local is None:
                self._fs.put_file(str(source), self._at(path))
                return
            with self._aside(path) as aside:
                shutil.copyfile(source, aside)

    def write(self, path: str, data: bytes) -> None:
        """Publish ``data`` at ``path``."""
        with self._doing("write", path):
            if self._local is None:
                self._fs.pipe_file(self._at(path), data)
                return
            with self._aside(path) as aside:
                aside.write_bytes(data)
            sync_path((self._local / path).parent)

    def stream(self, path: str, chunks: Iterable[bytes | memoryview]) -> None:
        """As :meth:`write`, piece by piece; :meth:`settle` makes its name survive a power loss."""
        with self._doing("write", path):
            if self._local is None:
                with self._fs.open(self._at(path), "wb") as file:
                    for chunk in chunks:
                        file.write(chunk)
                return
            with self._aside(path) as aside, aside.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)

    def local(self, path: str) -> Path | None:
        """Where a file lies on this machine; None where the target is another."""
        return None if self._local is None else self._local / path

    def settle(self, folder: str) -> None:
        """Make the names of files put into ``folder`` survive a power loss."""
        if self._local is not None and (self._local / folder).is_dir():
            with self._doing("sync", folder):
                sync_path(self._local / folder)

    @contextmanager
    def _aside(self, path: str) -> Iterator[Path]:
        """A file beside the local ``path`` that takes its place when the block ends well."""
        assert self._local is not None, "only for directories"
        final = self._local / path
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
        try:
            yield aside
            sync_path(aside)
            aside.replace(final)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's bytes, piece by piece.

        Raises:
            FileNotFoundError: if there is none.
        """
        with self._doing("read", path), self._fs.open(self._at(path), "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def read(self, path: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: if there is none.
        """
        with self._doing("read", path):
            # Not by way of its size, which some file systems remember although others write there.
            found: bytes = self._fs.cat_file(self._at(path))
            return found

    def files(self, folder: str) -> dict[str, int]:
        """Name -> bytes of the files in ``folder``, half-written ones that a crash left among them (``.NAME``)."""
        return {name: size for name, kind, size in self._listing(folder) if kind == "file"}

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in ``folder``."""
        return [name for name, kind, _ in self._listing(folder) if kind == "directory"]

    def _listing(self, folder: str) -> list[tuple[str, str, int]]:
        with self._doing("list", folder):
            try:
                # Others write here too: a cached listing would miss what they published.
                found = self._fs.ls(self._at(folder), detail=True, refresh=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            rows = [(str(row["name"]).rstrip("/").rpartition("/")[2], row["type"], row["size"] or 0) for row in found]
        return sorted(rows)

    def age_s(self, path: str) -> float:
        """Seconds since the file was written; 0 where the target cannot tell or it is gone."""
        with self._doing("look at", path):
            try:
                return time.time() - float(self._fs.modified(self._at(path)).timestamp())
            except (FileNotFoundError, NotImplementedError):
                return 0.0

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with self._doing("remove", path):
            try:
                self._fs.rm_file(self._at(path))
            except FileNotFoundError:
                return

    def remove_folder(self, folder: str) -> None:
        """Remove a folder that is empty, where the target has such a thing."""
        if self._local is not None:
            with self._doing("remove", folder), contextlib.suppress(FileNotFoundError):
                (self._local / folder).rmdir()

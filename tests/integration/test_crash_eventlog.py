"""The daemon as a process: killed, refused, out of disk, stopped. What it leaves is always whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from indexer.logical_state import differences
from indexer.store import store_path
from schemas.config import Config
from schemas.errors import StoreError, StoreMismatchError
from schemas.settings import load_settings
from streamer.daemon import run_daemon
from streamer.generations import load_model, local_shards, open_for_reading, open_index
from streamer.verification import verify_shards
from tests.builders import random_log, state_of, tiny_model, write_log

DEADLINE_S = 120
SETTINGS = """
data_dir = "{data_dir}"
[source]
kind = "eventlog"
path = "{log}"
align_wait_s = 60
max_poll_records = 512
[model]
path = "{model}"
[writer]
batch_records = 64
group_commit_ms = 5
[pending]
max_age_s = 1500
max_count = 100
[rebalance]
low = 4
high = 32
interval_ms = 1
merge_interval_s = 0
[http]
port = 0
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "model"
    tiny_model().save(path)
    return path


def settings(folder: Path, model: Path, events: int) -> Path:
    """A configuration file over a generated log; the data directory is ``folder/data``."""
    log = write_log(folder / "log", random_log(11, events))
    path = folder / "facetstream.toml"
    path.write_text(SETTINGS.format(data_dir=folder / "data", log=log, model=model))
    return path


def loaded(path: Path) -> Config:
    return load_settings(path, environment={}).config


class Daemon:
    """One ``facetstream run`` in a process of its own."""

    def __init__(self, config: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        self.errors = config.parent / f"stderr-{time.monotonic_ns()}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FACETSTREAM_")}
        with self.errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "streamer.cli", "run", "--config", str(config), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment | {"OMP_NUM_THREADS": "1"},
                cwd=Path(__file__).parents[2],
            )

    def said(self) -> str:
        return self.errors.read_text()

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait until the condition holds or the process ends; whether it holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, self.said()
            if self.process.poll() is not None:
                return condition()
            try:
                self.process.wait(0.002)
            except subprocess.TimeoutExpired:
                continue
        return True

    def started(self) -> bool:
        return '"event":"started"' in self.said()

    def opened(self, shards: int = 2) -> bool:
        return self.said().count('"event":"shard_opened"') >= shards

    def end(self) -> int:
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)


@contextmanager
def daemon(config: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> Iterator[Daemon]:
    running = Daemon(config, *arguments, prefix=prefix)
    try:
        yield running
    finally:
        running.kill()


def written(data_dir: Path) -> int:
    """Bytes in the write-ahead log."""
    logs = (data_dir / "generations" / "g000001").glob("shard-*/*.log")
    return sum(size_of(log) for log in logs)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # the store replaced it
        return 0


def assert_whole(config: Config, *, strict: bool) -> dict[str, int]:
    """The shards open and verify; returns their offsets."""
    model, positions = load_model(config), {}
    for shard in local_shards(config.data_dir, "g000001") or [0]:
        with open_index(config, model, shard) as index:
            reply = verify_shards({shard: index.store}, model, allow_unbalanced=not strict)
            assert reply.ok, reply.violations
            positions |= index.view.positions
    return positions


def test_a_daemon_killed_at_any_moment_and_started_again_ends_like_an_undisturbed_one(
    model: Path, tmp_path: Path
) -> None:
    events = 12_000
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    config = loaded(settings(calm, model, events))
    volumes: list[int] = []
    run_daemon(config, to_end=True, on_progress=lambda _: volumes.append(written(config.data_dir)))
    undisturbed = state_of(config.data_dir)
    assert undisturbed.pending
    assert {letter.reason for letter in undisturbed.letters} >= {
        "invalid",
        "unknown_type",
        "item_never_came",
        "pending_overflow",
    }

    file = settings(rough, model, events)
    rough_config, dice, interrupted = loaded(file), random.Random(12), 0
    store = store_path(rough_config.data_dir, "g000001")
    moments: list[Callable[[Daemon], bool]] = [
        lambda running: running.until((store / "CURRENT").exists),  # while the store is being made
        *(moment(rough_config.data_dir, dice.randrange(max(volumes) // 6)) for _ in range(3)),
    ]
    for reached in moments:
        with daemon(file, "--until-end") as running:
            assert reached(running), running.said()
            running.kill()
        done = sum(assert_whole(rough_config, strict=False).values())
        interrupted += 0 < done < events
    with daemon(file, "--until-end") as running:
        assert running.end() == 0, running.said()
    assert interrupted >= 2
    assert_whole(rough_config, strict=True)
    assert not differences(undisturbed, state_of(rough_config.data_dir))


def moment(data_dir: Path, threshold: int) -> Callable[[Daemon], bool]:
    """Once the process has written that much, or is done."""

    def reached(running: Daemon) -> bool:
        running.until(running.started)
        running.until(lambda: written(data_dir) > threshold)
        return running.started()

    return reached


def ask(url: str, path: str, document: Any = None) -> tuple[int, Any]:
    body = None if document is None else orjson.dumps(document)
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, body), timeout=DEADLINE_S) as answer:
            return answer.status, orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, orjson.loads(error.read())


def test_a_daemon_holds_its_store_answers_and_stops_gracefully(model: Path, tmp_path: Path) -> None:
    file = settings(tmp_path, model, 3_000)
    config = loaded(file)
    with daemon(file) as running:
        assert running.until(lambda: (config.data_dir / "daemon.json").exists() and running.started())
        state = orjson.loads((config.data_dir / "daemon.json").read_bytes())
        assert state["pid"] == running.process.pid
        url = state["url"]
        with daemon(file) as second:
            assert second.end() == 3
            assert "is held by another process, most likely a running daemon" in second.said()
            assert "Traceback" not in second.said()
        assert (config.data_dir / "daemon.json").exists()
        assert running.until(lambda: ask(url, "/readyz")[0] == 200)
        assert running.until(lambda: sum(ask(url, "/status")[1]["offsets"].values()) == 3_000)
        assert ask(url, "/livez")[0] == 200
        assert ask(url, "/compact", {})[0] == 200
        assert ask(url, "/status")[1]["out_of_bounds"] == 0
        status, found = ask(url, "/query", {"items": ["item 1", "item 2", "no such"], "k": 5, "seed": 1})
        assert status == 200
        assert len(found["results"]) == 5
        assert "no such" in found["missing"]
        status, found = ask(url, "/query", {"contents": [{"title": "word1 word7"}], "k": 5, "not_categories": ["x"]})
        assert status == 200
        assert len(found["results"]) == 5
        for wrong in (
            {},
            {"items": "item 1"},
            {"items": ["a"], "surprise": 1},
            {"contents": [{}]},
            {"items": [1]},
            {"items": ["a"], "k": 0},
            {"items": ["a"], "seed": "x"},
            {"items": ["a"], "max_age_s": 1e300},
            {"items": ["a"] * 1_001},
        ):
            assert ask(url, "/query", wrong)[0] == 400, wrong
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0, running.said()
        assert '"event":"stopped"' in running.said()
    assert not (config.data_dir / "daemon.json").exists()
    assert_whole(config, strict=False)
    run_daemon(config, to_end=True)
    assert sum(state_of(config.data_dir).offsets.values()) == 3_000


def test_a_store_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    config = loaded(settings(tmp_path, model, 50))
    run_daemon(config, to_end=True)
    tiny_model(seed=1).save(tmp_path / "other")
    other = config.model_copy(update={"model": config.model.model_copy(update={"path": tmp_path / "other"})})
    with pytest.raises(StoreMismatchError, match="was built with model_hash") as caught:
        run_daemon(other, to_end=True)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("what", ["write-ahead log", "dead letters"])
def test_a_full_disk_ends_the_daemon_clearly_and_what_was_written_stays_whole(
    model: Path, tmp_path: Path, what: str
) -> None:
    """A limit on the size of files stands for the disk: writing beyond it fails as on a full one."""
    file = settings(tmp_path, model, 8_000)
    config = loaded(file)
    if what == "dead letters":
        lines = [b"no event at all " * 40] * 4_000
        write_log(tmp_path / "log", {"items-00000": lines[:2_000], "items-00001": lines[2_000:]})
    limit_kib = {"write-ahead log": 600, "dead letters": 400}[what]
    limited = ("bash", "-c", f'ulimit -f {limit_kib}; exec "$0" "$@"')
    with daemon(file, "--until-end", prefix=limited) as running:
        assert running.end() == 3, running.said()
        assert "Traceback" not in running.said()
        assert "error: cannot" in running.said()
    assert_whole(config, strict=False)
    run_daemon(config, to_end=True)
    assert_whole(config, strict=True)
    calm = loaded(settings(tmp_path / "calm", model, 8_000))
    if what != "dead letters":
        run_daemon(calm, to_end=True)
        assert not differences(state_of(calm.data_dir), state_of(config.data_dir))
    else:
        letters = state_of(config.data_dir).letters
        assert sum(letters.values()) == len(letters)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody may write to; skips where this user may all the same and nothing can be mounted."""
    folder = tmp_path / "read only"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], check=False, capture_output=True)
        if mounted.returncode != 0:
            pytest.skip("this user may write everywhere, and may not mount")
    yield folder
    subprocess.run(["umount", folder], check=False, capture_output=True)
    folder.chmod(0o755)


def test_a_data_directory_that_cannot_be_written_is_a_clear_error(model: Path, tmp_path: Path, read_only: Path) -> None:
    file = settings(tmp_path, model, 50)
    with daemon(file, "--until-end", "--data-dir", str(read_only / "data")) as running:
        assert running.end() == 3
        assert "choose another --data-dir" in running.said() or "check space and permissions" in running.said()
        assert "Traceback" not in running.said()


def test_a_store_whose_lock_cannot_be_taken_is_a_clear_error(model: Path, tmp_path: Path) -> None:
    config = loaded(settings(tmp_path, model, 50))
    run_daemon(config, to_end=True)
    lock = store_path(config.data_dir, "g000001") / "LOCK"
    lock.unlink()
    lock.mkdir()  # what nobody can open for writing
    with pytest.raises(StoreError, match="LOCK"):
        run_daemon(config, to_end=True)
    lock.rmdir()
    assert_whole(config, strict=True)


def test_reading_commands_see_whole_states_while_the_daemon_writes(model: Path, tmp_path: Path) -> None:
    file = settings(tmp_path, model, 6_000)
    config = loaded(file)
    looks: list[Any] = []
    with daemon(file) as running:
        assert running.until(running.opened)
        read = 0
        while read < 6_000:
            with open_for_reading(config) as stores:
                looks.append(verify_shards(stores, None, allow_unbalanced=True))
                read = sum(offset for store in stores.values() for offset in store.offsets().values())
            assert running.process.poll() is None, running.said()
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0
    assert all(look.ok for look in looks), [look.violations for look in looks if not look.ok][:1]

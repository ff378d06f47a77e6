"""Several daemons share the shards: whoever joins, leaves, hangs or dies, together they hold what one alone would."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from indexer.logical_state import differences
from tests.conftest import FreshTopics
from tests.daemons import World, overlaps, spans

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture
def world(tmp_path: Path, fresh_topics: FreshTopics) -> Iterator[World]:
    """Four shards."""
    with World(tmp_path, fresh_topics(4), 4) as found:
        yield found


def assert_as_undisturbed(world: World, *names: str) -> None:
    calm, calm_letters = world.undisturbed()
    assert calm.pending
    assert calm_letters
    assert not differences(calm, world.state(*names))
    letters = world.letters(names[0])
    assert set(letters.values()) == {1}
    assert set(letters) == calm_letters


def test_joining_leaving_restarting_and_dying_change_nothing(world: World) -> None:
    for name in ("a", "b", "c"):
        world.settings(name, interval_s=0.5)
    disturbing = threading.Event()
    disturbing.set()
    with ThreadPoolExecutor(1) as pool:
        try:
            sending = pool.submit(world.send_slowly, 21, 4_000, disturbing.is_set)
            a, b = world.run("a"), world.run("b")
            a.until_ready()
            b.until_ready()
            a.until(lambda: len(a.shards()) == len(b.shards()) == 2, "two shards each")
            c = world.run("c").until_ready()  # joins in mid-stream
            c.until(lambda: bool(c.shards()), "a shard of its own")
            for name, daemon in (("a", a), ("b", b)):  # a rolling restart
                daemon.terminate()
                world.run(name).until_ready()
            a, b = (process for _, process in world.started[-2:])
            a.until(lambda: sorted([*a.shards(), *b.shards(), *c.shards()]) == [0, 1, 2, 3], "every shard")
            a.kill()
            a = world.run("a").until_ready()
            a.until(lambda: sorted([*a.shards(), *b.shards(), *c.shards()]) == [0, 1, 2, 3], "every shard again")
            c.terminate()  # for good
            a.until(lambda: sorted([*a.shards(), *b.shards()]) == [0, 1, 2, 3], "the shards of the one that left")
        finally:
            disturbing.clear()
        sending.result()
    world.until_applied(a, b)
    a.terminate()
    b.terminate()
    assert not overlaps(spans(daemon for _, daemon in world.started))
    assert_as_undisturbed(world, "a", "b")

"""Several daemons share the shards: whoever joins, leaves, hangs or dies, together they hold what one alone would."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from indexer.logical_state import differences
from tests.builders import random_log
from tests.conftest import FreshTopics, kafka_config
from tests.daemons import Daemon, World, overlaps, spans
from tests.kafka.broker import Broker, create_topics

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


def test_a_frozen_daemon_loses_its_shards_and_comes_back_as_a_good_member(world: World) -> None:
    for name in ("a", "b"):
        world.settings(name)
    world.send(random_log(22, 1_200, 4))
    a, b = world.run("a"), world.run("b")
    a.until_ready()
    b.until_ready()
    a.until(lambda: len(a.shards()) == len(b.shards()) == 2, "two shards each")
    a.signal(signal.SIGSTOP)
    b.until(lambda: b.shards() == {0, 1, 2, 3}, "the shards of the frozen one")
    opened = len(a.events("shard_opened"))
    world.send(random_log(23, 800, 4))
    world.until_applied(b)
    letters = world.letters("b")
    a.signal(signal.SIGCONT)
    a.until_logged("shards_lost")
    a.until(lambda: len(a.shards()) == len(b.shards()) == 2, "two shards each again")
    assert len(a.events("shard_opened")) > opened
    assert world.letters("b") == letters
    world.send(random_log(24, 400, 4))
    world.until_applied(a, b)
    a.terminate()
    b.terminate()
    assert_as_undisturbed(world, "a", "b")


def test_a_frozen_daemon_that_is_told_to_stop_writes_nothing_more(tmp_path: Path, fresh_topics: FreshTopics) -> None:
    with World(tmp_path, fresh_topics(1), 1) as world:
        for name in ("a", "b"):
            world.settings(name)
        a = world.run("a", FACETSTREAM_FAILPOINTS="batch.after=stop@3")
        a.until_logged("shard_opened")
        world.send(random_log(25, 800, 1))
        a.until(a.stopped, "the third batch")
        b = world.run("b")
        b.until_logged("shard_opened")
        world.until_applied(b)
        letters = world.letters("b")
        # Asked to stop while it is frozen: what it has read is not its own any more when it goes on.
        a.signal(signal.SIGTERM)
        a.signal(signal.SIGCONT)
        a.end()
        assert world.letters("b") == letters
        b.terminate()
        assert_as_undisturbed(world, "b")


def test_a_query_asks_every_shard_here_and_store_and_live_view_agree(world: World) -> None:
    world.settings("a", together=False)
    world.send(random_log(26, 2_000, 4))
    daemon = world.run("a").until_ready()
    world.until_applied(daemon)
    assert daemon.ask("/compact", {})[0] == 200
    items = [f"item {number}" for number in (1, 2, 3, 4)]
    code, live = daemon.ask("/query", {"items": items, "k": 20, "seed": 1})
    assert code == 200
    at_rest = world.reply("a", "query", *(word for item in items for word in ("--item", item)), "-k", "20")
    for reply in (live, at_rest):
        del reply["elapsed_ms"]
    assert live == at_rest
    assert len({row["shard"] for row in live["results"]}) > 1
    shards = {world.reply("a", "item", row["item_id"])["shard"] for row in live["results"]}
    assert shards == {row["shard"] for row in live["results"]}
    daemon.terminate()


def test_what_cannot_be_shared_is_refused(tmp_path: Path, fresh_topics: FreshTopics) -> None:
    with World(tmp_path, fresh_topics(2, engagement_partitions=3), 2) as uneven:
        uneven.settings("a")
        said = uneven.run("a").end(2)
        assert "has 2 partitions" in said
        assert "has 3" in said
        assert "they must be co-partitioned" in said
    with World(tmp_path, fresh_topics(2), 2) as world:
        for name in ("a", "b"):
            world.settings(name, session_s=6)
            path = world.folder / f"{name}.toml"
            path.write_text(path.read_text().replace("[model]", 'group_instance_id = "one"\n[model]'))
        a = world.run("a").until_ready()
        assert "is held by another process, most likely a running daemon" in world.run("a").end(3)
        b = world.run("b").until_ready()
        said = a.end(3)
        assert "another process joined group" in said
        assert "two use the same kafka.group_instance_id; give each its own" in said
        b.terminate()


def test_a_member_without_a_shard_is_ready_and_takes_over(tmp_path: Path, fresh_topics: FreshTopics) -> None:
    with World(tmp_path, fresh_topics(1), 1) as world:
        world.settings("a", interval_s=0.2)
        world.settings("b")
        world.send(random_log(27, 600, 1))
        a = world.run("a").until_ready()
        b = world.run("b").until_ready()
        assert b.shards() == set()
        world.until_applied(a)
        a.until_logged("checkpoint_created")
        a.kill()
        b.until_logged("restored")
        world.until_applied(b)
        b.terminate()
        assert_as_undisturbed(world, "b")


def test_a_partition_that_gives_nothing_is_named(tmp_path: Path, own_broker: Broker) -> None:
    kafka = kafka_config(own_broker.bootstrap)
    topics = {kafka.items_topic: 1, kafka.engagements_topic: 1, kafka.dead_letters_topic: 1}
    create_topics(own_broker.bootstrap, topics, retention_ms="-1")
    with World(tmp_path, kafka, 1) as world:
        world.settings("a", together=False, more="progress_after_s = 1")
        world.send(random_log(28, 400, 1))
        daemon = world.run("a", FACETSTREAM_FAILPOINTS="batch.after=stop@3")
        daemon.until_logged("shard_opened")
        daemon.until(daemon.stopped, "the third batch")
        own_broker.freeze()
        daemon.signal(signal.SIGCONT)
        # To open it may have taken more than a second, which is told too.
        daemon.until(lambda: " behind" in last(daemon, "no_progress")["reason"], "the partition to be named")
        assert "items-" in last(daemon, "no_progress")["reason"]
        before = len(daemon.events("progress_again"))
        own_broker.thaw()
        daemon.until_logged("progress_again", before + 1)
        world.until_applied(daemon)
        daemon.terminate()


def last(daemon: Daemon, event: str) -> dict[str, Any]:
    return next(iter(reversed(daemon.events(event))), {"reason": ""})

"""Sharing shards out: each has one owner at any time, whoever joins, leaves, hangs or dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Self

import pytest

from schemas.config import Config
from schemas.errors import BrokerError, ConfigError
from streamer import kafka_clients
from streamer.kafka_clients import open_admin
from streamer.membership import KafkaGroup
from streamer.sources.kafka_partitions import read_lag
from tests.conftest import kafka_config
from tests.kafka.broker import create_topics
from tests.kafka.members import Member, Notes, overlaps
from tests.kafka.records import engagements, items, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.config import KafkaConfig
    from tests.conftest import FreshTopics
    from tests.kafka.broker import Broker

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

SESSION_S = 4.0


@pytest.fixture
def members() -> Iterator[ExitStack]:
    """Members entered here leave at the end."""
    with ExitStack() as stack:
        yield stack


def test_a_single_member_is_given_every_shard_and_commits_for_both_topics(
    fresh_topics: FreshTopics, members: ExitStack
) -> None:
    config = config_of(fresh_topics, 3)
    one = join(members, config, "one")
    settle({0, 1, 2}, one)
    assert one.notes.told == [("assign", [0, 1, 2])]
    assert one.notes.epochs == [1]
    assert all(one.group.holds(shard) for shard in range(3))
    assert not one.group.holds(3)
    one.leave()
    two = KafkaGroup(config, Notes(), "one")
    until(lambda: two.turn(0.1) is None and two.holds(1) and two.holds(2), "the shards again")
    two.commit({items(config, 1): 0, engagements(config, 2): 0})
    two.close()  # waits for the commit
    committed = {str(lag.partition): lag.committed for lag in read_lag(Config(kafka=config))}
    assert [committed[str(items(config, n))] for n in range(3)] == [None, 0, None]
    assert [committed[str(engagements(config, n))] for n in range(3)] == [None, None, 0]


def test_members_that_join_and_leave_share_the_shards_without_overlap(
    fresh_topics: FreshTopics, members: ExitStack
) -> None:
    config = config_of(fresh_topics, 6)
    one = join(members, config, "one", revoke_s=0.5)
    settle(set(range(6)), one)
    two = join(members, config, "two", revoke_s=0.5)
    settle(set(range(6)), one, two, each=3)
    three = join(members, config, "three", revoke_s=0.5)
    settle(set(range(6)), one, two, three, each=2)
    kept = one.notes.now()
    two.leave()
    settle(set(range(6)), one, three, each=3)
    assert kept <= one.notes.now()  # sticky: what it had stays
    assert overlaps([one.notes, two.notes, three.notes]) == []
    assert not any(what == "lost" for member in (one, two, three) for what, _ in member.notes.told)


def test_a_member_too_many_is_told_that_it_has_none(fresh_topics: FreshTopics, members: ExitStack) -> None:
    config = config_of(fresh_topics, 1)
    one = join(members, config, "one")
    settle({0}, one)
    two = join(members, config, "two")
    until(lambda: time.sleep(0.05) is None and two.alive() and bool(two.notes.told), "the second to join")
    assert two.notes.told == [("assign", [])]
    assert two.group.joined
    one.leave()
    settle({0}, two)
    assert two.notes.told == [("assign", []), ("assign", [0])]


@pytest.mark.parametrize("share", [0.5, 1.5])
def test_a_long_revocation_costs_nobody_its_membership(
    fresh_topics: FreshTopics, members: ExitStack, share: float
) -> None:
    config = config_of(fresh_topics, 4)
    one = join(members, config, "one", revoke_s=share * SESSION_S)  # several heartbeats, even longer than the session
    settle({0, 1, 2, 3}, one)
    two = join(members, config, "two")
    settle({0, 1, 2, 3}, one, two, each=2)
    assert [what for what, _ in one.notes.told] == ["assign", "revoke"]
    assert one.notes.deadlines == [SESSION_S / 2]
    assert all(one.notes.during_revoke)  # it may flush what it has
    assert not any(one.group.holds(shard) for shard in two.notes.now())
    assert overlaps([one.notes, two.notes]) == []


def test_a_turn_long_overdue_costs_nobody_its_membership(fresh_topics: FreshTopics) -> None:
    config = config_of(fresh_topics, 2)
    notes = Notes()
    group = KafkaGroup(config, notes, "one")
    until(lambda: group.turn(0.1) is None and notes.now() == {0, 1}, "shards")
    time.sleep(2 * SESSION_S)  # heartbeats go on
    assert group.holds(0)
    group.turn(1.0)
    assert notes.told == [("assign", [0, 1])]
    group.close()


def test_signals_never_make_a_turn_wait_for_ever(fresh_topics: FreshTopics) -> None:
    """As SimpleQueue.get does when a signal comes just as its time runs out; the daemon hung at SIGTERM by that."""
    stop = threading.Event()

    def pester() -> None:
        while not stop.wait(0.0007):
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    pesterer = threading.Thread(target=pester)
    with closing(KafkaGroup(config_of(fresh_topics, 1), Notes(), "pestered")) as group:
        pesterer.start()
        try:
            for _ in range(600):
                group.turn(0.0021)
        finally:
            stop.set()
            pesterer.join()
            signal.signal(signal.SIGUSR1, before)


def test_a_killed_member_that_starts_again_finds_its_shards_and_disturbs_nobody(
    fresh_topics: FreshTopics, members: ExitStack
) -> None:
    config = config_of(fresh_topics, 4).model_copy(update={"session_timeout_s": 60.0})
    one = join(members, config, "one")
    settle({0, 1, 2, 3}, one)
    with MemberProcess(config, "two") as process:
        assert process.told() == ["assign"]  # none until the other has revoked some
        mine = process.told()
        assert [mine[0], len(mine)] == ["assign", 3]
        told = list(one.notes.told)
    before = time.monotonic()
    with MemberProcess(config, "two") as again:
        assert again.told() == mine
        assert time.monotonic() - before < 60.0  # the session of the killed one had not ended
        assert one.notes.told == told


def test_shards_that_a_killed_member_was_giving_up_find_their_new_owner(
    fresh_topics: FreshTopics, members: ExitStack
) -> None:
    config = config_of(fresh_topics, 4).model_copy(update={"session_timeout_s": 20.0})
    with MemberProcess(config, "one", revoke_s=60) as process:
        assert process.told() == ["assign", "0", "1", "2", "3"]
        two = join(members, config, "two")
        told = process.told()
        assert [told[0], len(told)] == ["revoke", 3]
    with MemberProcess(config, "one") as again:
        kept = again.told()
        assert [kept[0], len(kept)] == ["assign", 3]
        settle({0, 1, 2, 3} - {int(shard) for shard in kept[1:]}, two)


def test_of_two_members_with_one_name_the_older_is_told_and_stops(
    fresh_topics: FreshTopics, members: ExitStack
) -> None:
    config = config_of(fresh_topics, 2)
    older = join(members, config, "same")
    settle({0, 1}, older)
    newer = join(members, config, "same")
    settle({0, 1}, newer)
    until(lambda: time.sleep(0.05) is None and older.error is not None, "the older to be told")
    assert isinstance(older.error, BrokerError)
    assert "another process" in str(older.error)
    assert "kafka.group_instance_id" in str(older.error)
    assert older.notes.told[-1] == ("lost", [0, 1])
    assert not older.group.holds(0)
    assert newer.alive()
    older.group.commit({items(config): 0})  # fenced: neither raises nor reaches the broker
    older.leave()
    assert read_lag(Config(kafka=config))[2].committed is None


def test_a_stopped_process_that_wakes_up_after_its_session_has_lost_its_shards(
    fresh_topics: FreshTopics, members: ExitStack
) -> None:
    config = config_of(fresh_topics, 2)
    with MemberProcess(config, "sleeper") as sleeper:
        assert sleeper.told() == ["assign", "0", "1"]
        sleeper.process.send_signal(signal.SIGSTOP)
        one = join(members, config, "one", revoke_s=1.0)
        settle({0, 1}, one)  # after the sleeper's session
        sleeper.process.send_signal(signal.SIGCONT)
        # The lease is over from the first look on, before the group says so; then it joins again.
        assert sleeper.told() == ["awake", "False"]
        assert sleeper.told() == ["lost", "0", "1"]
        assert len(sleeper.told()) == 2
        assert one.alive()
        assert len(one.notes.now()) == 1


def test_a_session_timeout_that_the_broker_does_not_allow_is_a_configuration_error(fresh_topics: FreshTopics) -> None:
    config = config_of(fresh_topics, 1).model_copy(update={"session_timeout_s": 1.0})
    group = KafkaGroup(config, Notes(), "one")
    with pytest.raises(ConfigError, match=r"kafka\.session_timeout_s is 1.*group\.min\.session"):
        until(lambda: group.turn(0.1) is not None, "a refusal")
    group.close()


def test_a_group_of_another_kind_is_told(fresh_topics: FreshTopics) -> None:
    from kafka import KafkaConsumer

    config = config_of(fresh_topics, 1)
    other = KafkaConsumer(config.items_topic, bootstrap_servers=config.bootstrap_servers, group_id=config.group_id)
    other.poll(5_000)
    group = KafkaGroup(config, Notes(), "one")
    with pytest.raises(BrokerError, match=r"members of another kind.*kafka\.group_id"):
        until(lambda: group.turn(0.1) is not None, "a refusal")
    group.close()
    other.close()


def test_a_broker_that_is_away_ends_the_lease_but_not_the_membership(own_broker: Broker, members: ExitStack) -> None:
    # From its start on a broker waits one session for those it knew.
    config = kafka_config(own_broker.bootstrap).model_copy(update={"session_timeout_s": 3 * SESSION_S})
    create_topics(own_broker.bootstrap, {config.items_topic: 2, config.engagements_topic: 2})
    one = join(members, config, "one")
    settle({0, 1}, one)
    own_broker.kill()
    until(lambda: time.sleep(0.1) is None and one.alive() and not one.group.holds(0), "the lease to end")
    one.group.commit({items(config): 0})
    own_broker.start()
    until(lambda: time.sleep(0.1) is None and one.alive() and one.group.holds(0), "the lease to come back")
    assert one.notes.told == [("assign", [0, 1])]
    until(lambda: one.alive() and read_lag(Config(kafka=config))[2].committed == 0, "the commit, late")


def test_a_broker_that_was_frozen_finds_its_members_again(own_broker: Broker, members: ExitStack) -> None:
    """By its clock the session may have passed; then the shards are lost, and what waits to be committed with them."""
    config = kafka_config(own_broker.bootstrap).model_copy(update={"session_timeout_s": SESSION_S})
    create_topics(own_broker.bootstrap, {config.items_topic: 2, config.engagements_topic: 2})
    one = join(members, config, "one")
    settle({0, 1}, one)
    own_broker.freeze()
    until(lambda: time.sleep(0.1) is None and one.alive() and not one.group.holds(0), "the lease to end")
    own_broker.thaw()
    until(lambda: time.sleep(0.1) is None and one.alive() and one.group.holds(0), "the lease to come back")
    settle({0, 1}, one)
    told = [what for what, _ in one.notes.told]
    assert told == ["assign", *["lost", "assign"] * (len(told) // 2)]
    assert overlaps([one.notes]) == []


def test_a_deleted_topic_takes_the_shards_with_it_and_a_new_one_brings_them(
    fresh_topics: FreshTopics, members: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_clients, "METADATA_AGE_MS", 200)
    config = config_of(fresh_topics, 2)
    one = join(members, config, "one")
    settle({0, 1}, one)
    with closing(open_admin(config)) as admin:
        admin.delete_topics([config.items_topic])
    settle(set(), one)
    create_topics(config.bootstrap_servers, {config.items_topic: 2})
    settle({0, 1}, one)
    assert [what for what, _ in one.notes.told] == ["assign", "revoke", "assign"]


def test_members_killed_and_restarted_at_random_never_own_a_shard_together(
    fresh_topics: FreshTopics, members: ExitStack
) -> None:
    config = config_of(fresh_topics, 5)
    choice = random.Random(7)
    running = {name: join(members, config, name, revoke_s=0.3) for name in ("one", "two", "three")}
    notes = [member.notes for member in running.values()]
    for _ in range(8):
        name = choice.choice(sorted(running))
        running[name].leave()  # a static member says nothing: to the group this is a kill
        time.sleep(choice.choice([0.0, 1.0, SESSION_S + 1]))
        running[name] = join(members, config, name, revoke_s=0.3)
        notes.append(running[name].notes)
        if choice.random() < 0.5:
            settle(set(range(5)), *running.values(), whatever=True)
    settle(set(range(5)), *running.values(), whatever=True)
    assert overlaps(notes) == []


def config_of(fresh_topics: FreshTopics, partitions: int) -> KafkaConfig:
    return fresh_topics(partitions=partitions).model_copy(update={"session_timeout_s": SESSION_S})


def join(members: ExitStack, config: KafkaConfig, name: str, *, revoke_s: float = 0.0) -> Member:
    member = Member(config, name, revoke_s=revoke_s)
    members.callback(member.leave)
    return member


def settle(shards: set[int], *members: Member, each: int | None = None, whatever: bool = False) -> None:
    """Wait until these members own exactly these shards, ``each`` as many, or ``whatever`` share."""

    def settled() -> bool:
        time.sleep(0.05)
        owned = [member.notes.now() for member in members if member.alive()]
        sizes = {len(some) for some in owned}
        return sorted(shards) == sorted(shard for some in owned for shard in some) and (
            whatever or sizes <= {each or len(shards)}
        )

    until(settled, f"{shards} to be owned")


MEMBER = """
import sys, time
from schemas.config import KafkaConfig
from streamer import kafka_clients
from streamer.kafka_clients import open_admin
from streamer.membership import KafkaGroup

def tell(*words): print(">", *words, flush=True)

class Owner:
    def assign(self, shards, epoch): tell("assign", *shards)
    def revoke(self, shards, deadline_s): tell("revoke", *shards); time.sleep(float(sys.argv[3]))
    def lost(self, shards): tell("lost", *shards)

config = KafkaConfig.model_validate_json(sys.argv[1])
group = KafkaGroup(config, Owner(), sys.argv[2])
seen = time.monotonic()
while True:
    now = time.monotonic()
    if now - seen > config.session_timeout_s: tell("awake", group.holds(0))
    seen = now
    group.turn(0.1)
"""


class MemberProcess:
    """A member in a process of its own, to be killed or stopped."""

    def __init__(self, config: KafkaConfig, name: str, *, revoke_s: float = 0.0) -> None:
        command = [sys.executable, "-c", MEMBER, config.model_dump_json(), name, str(revoke_s)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def told(self) -> list[str]:
        """The next words it says; logs are passed over."""
        assert self.process.stdout is not None
        return next(line.split()[1:] for line in self.process.stdout if line.startswith("> "))

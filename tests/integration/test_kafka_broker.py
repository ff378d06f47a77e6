"""The broker that tests and benchmarks start leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kafka.records import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
OWNER = """
import sys, time
from tests.kafka.broker import Broker
broker = Broker().start()
print(broker._folder, broker._process.pid, flush=True)
sys.stdin.read()
broker.close()
"""


@pytest.fixture(autouse=True)
def _java() -> None:
    from tests.conftest import give_up
    from tests.kafka.jars import NoBrokerError, find_class_path, find_java

    try:
        find_java(), find_class_path()
    except NoBrokerError as error:
        give_up(str(error))


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(
    "end", [lambda process: process.stdin.close(), lambda process: process.kill()], ids=["closed", "owner killed"]
)
def test_broker_and_folder_go_with_their_owner(owner: subprocess.Popen[str], end: Callable) -> None:
    folder, pid = owner.stdout.readline().split()
    assert Path(folder).is_dir()
    os.kill(int(pid), 0)
    end(owner)
    until(lambda: gone(Path(folder), int(pid)), "the broker to go")


def gone(folder: Path, pid: int) -> bool:
    time.sleep(0.05)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return not folder.exists()
    return False


def test_the_command_names_its_address_and_ends_on_interrupt() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kafka.broker"], cwd=ROOT, text=True, stdout=subprocess.PIPE
    ) as process:
        assert "Kafka is ready at 127.0.0.1:" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0

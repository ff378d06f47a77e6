"""Commands are loaded one by one."""

from __future__ import annotations

import subprocess
import sys

import typer

from streamer.cli import app
from streamer.cli._rooms import ROOMS


def test_every_room_holds_the_commands_it_is_listed_with():
    group = typer.main.get_command(app)
    assert group.list_commands(None) == list(ROOMS)
    assert sorted(group.commands) == sorted(ROOMS)
    assert all(group.get_command(None, name) is group.commands[name] for name in ROOMS)


def test_an_unknown_command_is_refused_with_one_like_it(command_line):
    told = command_line.invoke(app, ["evalute"])
    assert told.exit_code == 2
    assert "'evaluate'" in told.stderr


def test_an_evaluation_needs_no_broker_and_no_object_store():
    asked = (
        "import sys\n"
        "from streamer.cli import app\n"
        "try:\n"
        "    app(['evaluate', '--events', 'nowhere', '--from', '5'], standalone_mode=False)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
        "print(sorted({'kafka', 'fsspec', 'pyarrow', 'prometheus_client'} & sys.modules.keys()))\n"
    )
    told = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["UsageError", "[]"]

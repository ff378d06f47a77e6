"""The commands by name, each loaded when it is called: what one needs, the others do without."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperGroup

ROOMS: Final = {
    "demo": "learn",
    "import": "learn",
    "train": "learn",
    "trainer": "trainer",
    "evaluate": "evaluate",
    "run": "stream",
    "produce": "stream",
    "compact": "stream",
    "item": "inspect",
    "leaf": "inspect",
    "leaves": "inspect",
    "stats": "inspect",
    "lag": "inspect",
    "verify": "inspect",
    "query": "query",
    "replay": "replays",
    "schema": "configuration",
    "generation": "generation",
    "refresh": "refresh",
    "checkpoint": "checkpoint",
    "snapshot": "snapshot",
    "deadletters": "deadletters",
    "config": "configuration",
}
"""Module by command, in the order of the help."""


class Rooms(TyperGroup):
    """All commands. Only the room of the one that is called is loaded; for the help, all are."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Names in the order of :data:`ROOMS`."""
        for room in dict.fromkeys(ROOMS.values()):
            self._open(room)
        return list(ROOMS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; None where there is none, and then all are known, so that a like one can be named."""
        if cmd_name in ROOMS:
            self._open(ROOMS[cmd_name])
        else:
            self.list_commands(ctx)
        return self.commands.get(cmd_name)

    def _open(self, room: str) -> None:
        if any(name in self.commands for name, where in ROOMS.items() if where == room):
            return
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.callback()(_nothing)  # makes a group of a single command, too
        import_module(f"streamer.cli.{room}").register(app)
        made: Any = typer.main.get_command(app)
        self.commands.update(made.commands)


def _nothing() -> None:
    pass

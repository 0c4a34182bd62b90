"""The thread that the engines run in: the event loop gives it tickets, and gets their events.

A forward pass lets other threads run while it computes, so the event loop answers meanwhile. The
events of a turn are handed over together. A cancelled ticket gives its memory back before the next
step.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from bc2.parallel.own_device import make_current
from bc2.serve.lane import Lane
from bc2.serve.reward_lane import RewardLane
from bc2.serve.ticket import Sent, Ticket

_Command = tuple[Literal["begin", "cancel"], str, Ticket]


class EngineThread:
    """Works on tickets; all its methods are called in the event loop's thread.

    Args:
        lanes: by the names of their models.
        died: called in the event loop's thread if the thread ends by an error of its own.
    """

    def __init__(
        self, lanes: Mapping[str, Lane | RewardLane], died: Callable[[BaseException], None]
    ):
        self._lanes = dict(lanes)
        self._died = died
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._working: dict[Ticket, str] = {}
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="bc2-engine", daemon=True)
        self._thread.start()

    @property
    def tickets(self) -> int:
        """Tickets that are being worked on."""
        return len(self._working)

    def submit(self, name: str, ticket: Ticket) -> None:
        """Have a lane begin with a ticket."""
        if self._error is not None:
            ticket.put(self._error)
            return
        self._working[ticket] = name
        self._commands.put(("begin", name, ticket))

    def cancel(self, ticket: Ticket) -> None:
        """Let nobody work on a ticket any more; nothing if it has its answer."""
        ticket.over = True
        if (name := self._working.pop(ticket, None)) is not None:
            self._commands.put(("cancel", name, ticket))

    def fail_all(self, error: Exception) -> None:
        """End all tickets, and those to come."""
        self._error = error
        for ticket in list(self._working):
            ticket.put(error)
            self.cancel(ticket)

    def stop(self, timeout: float) -> bool:
        """End the thread after its turn; whether it did within so many seconds."""
        self._commands.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # ---------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            for lane in self._lanes.values():
                # All are on one device. Which GPU is the current one each thread has to say.
                make_current(lane.device)
            while self._take():
                events = [
                    event for lane in self._lanes.values() if lane.busy for event in lane.turn()
                ]
                if events:
                    self._call(partial(self._hand_over, events))
            for lane in self._lanes.values():
                lane.close()
        except BaseException as error:
            self._call(partial(self._end, error))

    def _take(self) -> bool:
        """Do what was told; wait for it where there is nothing else to do. False: stop."""
        waits = not any(lane.busy for lane in self._lanes.values())
        while True:
            try:
                command = self._commands.get(block=waits)
            except queue.Empty:
                return True
            if command is None:
                return False
            what, name, ticket = command
            lane = self._lanes[name]
            if what == "begin":
                lane.begin(ticket)
            else:
                lane.cancel(ticket)
            waits = not any(lane.busy for lane in self._lanes.values())

    def _call(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            # The loop is closed: the server has ended, and nobody waits for anything.
            self._commands.put(None)

    # ------------------------------------------------------------------------ in the loop

    def _hand_over(self, events: list[Sent]) -> None:
        for ticket, event in events:
            ticket.put(event)
            if ticket.over:
                self._working.pop(ticket, None)

    def _end(self, error: BaseException) -> None:
        self._error = RuntimeError("the engine has stopped")
        for ticket in list(self._working):
            ticket.put(self._error)
        self._working.clear()
        self._died(error)

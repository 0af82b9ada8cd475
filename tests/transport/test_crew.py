"""Children and their coordinator: reports in order, deaths told, waits that can be left."""

from __future__ import annotations

import mmap
import os
import time
from multiprocessing.connection import Connection

import pytest
from vmferry.transport.crew import Crew, CrewError, DeathError, Failed
from vmferry.transport.process import send_message

from tests.patience import PATIENCE


def answer(connection: Connection, report: object) -> None:
    """Report at once as a child, and then wait for its end."""
    send_message(connection, report)
    connection.recv()


def die(connection: Connection) -> None:
    """Wait as a child that is killed from outside."""
    del connection
    os.kill(os.getpid(), 9)


def break_down(connection: Connection) -> None:
    """Fail as a child with a bug does."""
    del connection
    raise ValueError("this is not it")


def test_report(crew: Crew) -> None:
    """Broken: the coordinator would not hear that a round is done."""
    crew.start("child", answer, ("done",))
    assert crew.wait_for(str, 20) == "done"


def test_other_report(crew: Crew) -> None:
    """Broken: an answer to something else would be taken for the one that is waited for."""
    crew.start("child", answer, (1,))
    with pytest.raises(CrewError, match="a report arrived out of turn: int"):
        crew.wait_for(str, 20)


def test_report_during_another_wait(crew: Crew) -> None:
    """Broken: what a child says while its coordinator waits for a slot would be lost."""
    child = crew.start("child", answer, ("early",))
    slot_free = os.eventfd(0)
    deadline = time.monotonic() + PATIENCE

    def free_the_slot() -> None:
        if not child.connection.poll() or time.monotonic() > deadline:
            os.eventfd_write(slot_free, 1)

    assert child.connection.poll(20)
    crew.on_tick = free_the_slot
    crew.wait_fd(slot_free)
    os.close(slot_free)
    assert not child.connection.poll()
    assert crew.wait_for(str, 20) == "early"


def test_failure(crew: Crew) -> None:
    """Broken: a broken channel would be told as something else, or not at all."""
    crew.start("child", answer, (Failed("no space left"),))
    with pytest.raises(CrewError, match=r"^no space left$"):
        crew.wait_for(str, 20)


def test_death(crew: Crew) -> None:
    """Broken: a killed process would leave its coordinator waiting for ever."""
    crew.start("child", die, ())
    with pytest.raises(DeathError, match="process child died"):
        crew.wait_for(str, 20)


def lose_file(connection: Connection) -> None:
    """Touch a mapped file that was cut before."""
    del connection
    fd = os.memfd_create("file")
    os.ftruncate(fd, mmap.PAGESIZE)
    mapping = mmap.mmap(fd, mmap.PAGESIZE)
    os.ftruncate(fd, 0)
    mapping[0] = 1


def abort(connection: Connection) -> None:
    """End as a child does in which a library gives up."""
    del connection
    os.abort()


def test_fault_is_named(crew: Crew) -> None:
    """Broken: nobody would learn that the disk is full."""
    crew.start("child", lose_file, ())
    with pytest.raises(DeathError, match=r"^process child died by SIGBUS: .*disk full"):
        crew.wait_for(str, 20)
    crew.stop()
    crew.start("child", abort, ())
    with pytest.raises(DeathError, match=r"^process child died by SIGABRT$"):
        crew.wait_for(str, 20)


def test_bug(crew: Crew) -> None:
    """Broken: nobody would learn what happened in the child."""
    crew.start("child", break_down, ())
    with pytest.raises(CrewError, match="process child: ValueError: this is not it"):
        crew.wait_for(str, 20)


def test_last_words(crew: Crew) -> None:
    """Broken: a migration would fail with "Broken pipe", and the guest end with it."""
    child = crew.start("child", die, ())
    assert child.wait(PATIENCE)
    with pytest.raises(DeathError, match="process child died"), crew.reasons():
        send_message(child.connection, "command")


def test_timeout(crew: Crew) -> None:
    """Broken: a destination that never answers would hold the guest for ever."""
    with pytest.raises(CrewError, match="no answer"):
        crew.wait_for(str, 0.2)


def test_check_leaves_a_wait() -> None:
    """Broken: cancel would wait for the end of the round."""

    def cancelled() -> None:
        raise InterruptedError

    wake_fd = os.eventfd(1, os.EFD_NONBLOCK)
    with pytest.raises(InterruptedError):
        Crew(wake_fd, cancelled).wait_for(str)
    os.close(wake_fd)

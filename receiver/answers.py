"""Answer the commands of the source on the return path, and keep what they say about the source."""

from __future__ import annotations

from multiprocessing.connection import Connection

from ..protocol.events import Command
from ..protocol.handover import Peer, Word
from ..protocol.return_path import pong
from ..protocol.wire.marks import CommandType
from ..transport.channel import Channel, ChannelError


class Answers:
    """Answerer of the commands in one stream, on its return path."""

    def __init__(self, connection: Connection, channel: Channel) -> None:
        self._connection = connection
        self._channel = channel
        self.wanted = False
        """True once the source has opened the return path, and so expects answers."""
        self.peer = Peer.STOCK
        """The source's part in the handover."""

    def obey(self, command: Command) -> None:
        """Do what a command in the stream asks. Raises ChannelError if no answer can arrive."""
        if command.command == CommandType.OPEN_RETURN_PATH:
            if not self._channel.bidirectional:
                raise ChannelError("the source wants answers, but the channel goes one way")
            self.wanted = True
        elif command.command == CommandType.PING and self.wanted:
            value = int.from_bytes(command.data, "big")
            if value == Word.HELLO:
                self.peer = Peer.CONFIRMING
                self._send(pong(Word.CONFIRMS))
            self._send(pong(value))

    def _send(self, answer: bytes) -> None:
        self._channel.send(memoryview(answer), stop_fd=self._connection.fileno())

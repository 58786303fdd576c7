"""Connections over a pair of sockets, with their numbers; and the first word, which is secret."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.mitm import handing
from proxy_addon.mitm.handing import Numbers, Welcome


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def test_each_connection_comes_with_its_own_number(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    listener = socket.create_server(("127.0.0.1", 0))
    clients = [socket.create_connection(listener.getsockname()) for _ in range(5)]
    for number, client in enumerate(clients, 1):
        accepted, _ = listener.accept()
        client.sendall(b"%d" % number)
        handing.hand_over(ours, number, accepted)
        accepted.close()
    for number, client in enumerate(clients, 1):
        found = handing.take_over(theirs)
        assert found is not None
        told, connection = found
        connection.setblocking(True)
        assert (told, connection.recv(10)) == (number, b"%d" % number)
        connection.close()
        assert client.recv(1) == b""  # nobody else has it open
        client.close()
    with pytest.raises(BlockingIOError):
        handing.take_over(theirs)
    ours.close()
    assert handing.take_over(theirs) is None
    listener.close()


def test_a_number_without_a_connection_goes_back(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.send(handing.pack(9))
    with pytest.raises(BlockingIOError):
        handing.take_over(theirs)
    assert list(Numbers().feed(ours.recv(100))) == [9]


def test_nobody_there(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.close()
    with socket.socket() as connection, pytest.raises(BrokenPipeError):
        handing.hand_over(ours, 1, connection)


@given(st.lists(st.integers(0, 2**64 - 1)), st.lists(st.integers(1, 20)))
def test_numbers_in_pieces(numbers: list[int], cuts: list[int]) -> None:
    data = b"".join(map(handing.pack, numbers))
    reader = Numbers()
    found: list[int] = []
    for cut in cuts:
        found += reader.feed(data[:cut])
        data = data[cut:]
    assert found + list(reader.feed(data)) == numbers


def test_the_first_word_is_whole_and_shows_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.setblocking(True)
    told = Welcome([("127.0.0.1", 8402), ("::1", 8402, 0, 0)], {"P": "hunter2"}, {3: "swordfish\n"})
    assert "hunter2" not in repr(told)
    assert "swordfish" not in repr(told)
    told.send(ours)
    assert Welcome.receive(theirs) == told


@pytest.mark.parametrize("data", [b"", b"\x00\x00", b"\x00\x00\x00\x10{", b"\xff\xff\xff\xff{}"])
def test_no_first_word(pair: tuple[socket.socket, socket.socket], data: bytes) -> None:
    ours, theirs = pair
    theirs.setblocking(True)
    ours.send(data)
    ours.close()
    with pytest.raises(EOFError):
        Welcome.receive(theirs)


def test_a_worker_reads_a_secret_where_the_config_says() -> None:
    """``fd:N`` can be read once; each worker gets a copy under the same number."""
    from proxy_addon.mitm.intake import Intake
    from proxy_addon.secret_sources import source

    ours, theirs = socket.socketpair()
    number = os.open(os.devnull, os.O_RDONLY)
    with ours:
        Welcome([("127.0.0.1", 1)], {}, {number: "swordfish\nmore\n"}).send(ours)
        intake = Intake.open(theirs.detach())
        assert source(f"fd:{number}", "the password")() == "swordfish"
        intake._channel.close()

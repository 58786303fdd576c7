"""Our own errands: to the addresses that were checked, under the name that was asked for, and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy_addon.core.errors import OutcomeUnknown
from proxy_addon.egress import Egress
from proxy_addon.outbound import Outbound
from tests.unit.mitm.servers import make_certificate
from tests.unit.places import BAD, GOOD, Names, places

CREDENTIAL = {"authorization": "Payment c4n4ry"}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For localhost and 127.0.0.1."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@contextlib.asynccontextmanager
async def outbound(egress: Egress | None = None, **options: object) -> AsyncIterator[Outbound]:
    made = Outbound(egress, **options)  # type: ignore[arg-type]
    yield made
    await made.aclose()


async def test_the_checked_address_is_dialled(names: Names) -> None:
    names["flip.test"] = [[GOOD], [BAD]]
    async with places() as up, outbound(Egress(allow=[GOOD])) as out:
        answer = await out.send("GET", up.url("flip.test"), CREDENTIAL)
        assert (answer.status, answer.body) == (200, GOOD.encode())
        assert f"Host: flip.test:{up.port}".encode() in up.at[GOOD].received
        assert (names.asked, up.at[BAD].connections) == (["flip.test"], 0)


async def test_a_credential_goes_to_no_place_that_is_not_allowed(names: Names) -> None:
    names["flip.test"] = [[BAD]]
    async with places() as up, outbound() as out:
        with pytest.raises(
            OutcomeUnknown, match=r"flip\.test:\d+ is at 127\.0\.0\.1 \(loopback\), where an errand"
        ):
            await out.send("POST", up.url("flip.test"), CREDENTIAL)
        assert up.at[BAD].connections == 0


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0", "0177.0.0.1", "LOCALHOST.test"])
async def test_an_address_in_disguise_is_no_address(host: str) -> None:
    async with places() as up, outbound() as out:
        with pytest.raises(OutcomeUnknown):
            await out.send("GET", up.url(host), CREDENTIAL)
        assert up.at[BAD].connections == 0


async def test_what_the_config_has_written_as_an_address_is_that_address() -> None:
    async with places() as up, outbound() as out:
        for host in (BAD, "localhost"):
            assert (await out.send("GET", up.url(host), CREDENTIAL)).body == BAD.encode()


async def test_the_next_address_is_tried(names: Names) -> None:
    names["many.test"] = [[BAD, "127.0.0.3", GOOD]]
    async with places() as up, outbound(Egress(allow=["127.0.0.3", GOOD])) as out:
        assert (await out.send("GET", up.url("many.test"), CREDENTIAL)).body == GOOD.encode()
        assert up.at[BAD].connections == 0


async def test_tls_is_about_the_name(names: Names, pem: Path) -> None:
    """The certificate is for localhost: under that name it is right, under another at the same address it is not."""
    names["other.test"] = [[BAD]]
    async with places(pem) as up, outbound(Egress(allow=[BAD]), extra_ca=pem) as out:
        assert (await out.send("GET", up.url("localhost"), CREDENTIAL)).status == 200
        assert up.at[BAD].sni == ["localhost"]
        with pytest.raises(OutcomeUnknown, match=r"other\.test did not answer GET: SSLCertVerificationError"):
            await out.send("GET", up.url("other.test"), CREDENTIAL)
        assert b"other.test" not in up.at[BAD].received
    async with places(pem) as up, outbound(Egress(allow=[BAD])) as out:
        with pytest.raises(OutcomeUnknown, match="SSLCertVerificationError"):  # nobody vouches for it
            await out.send("GET", up.url("localhost"), CREDENTIAL)


async def test_a_name_that_does_not_exist(names: Names) -> None:
    async with outbound() as out:
        with pytest.raises(OutcomeUnknown, match=r"none\.test did not answer GET: gaierror"):
            await out.send("GET", "http://none.test/", CREDENTIAL)


async def test_a_kept_connection_needs_no_second_look(names: Names) -> None:
    names["flip.test"] = [[GOOD], [BAD]]
    async with places() as up, outbound(Egress(allow=[GOOD])) as out:
        for _ in range(3):
            assert (await out.send("GET", up.url("flip.test"), CREDENTIAL)).status == 200
        assert (up.at[GOOD].connections, len(names.asked)) == (1, 1)


async def test_a_redirect_is_an_answer(names: Names) -> None:
    """Wherever it points: another origin, plain http, this machine."""
    reached = asyncio.Event()
    async with places() as up, outbound() as out:
        for location in (
            f"http://{GOOD}:{up.port}/",
            f"http://localhost:{up.port}/",
            "//other.test/",
            "/same",
        ):
            seen: list[bytes] = []

            async def redirect(
                reader: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                location: str = location,
                seen: list[bytes] = seen,
            ) -> None:
                seen.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(f"HTTP/1.1 307 Go\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
                if await reader.read(1):
                    reached.set()
                writer.close()

            server = await asyncio.start_server(redirect, BAD, 0)
            url = f"http://{BAD}:{server.sockets[0].getsockname()[1]}/"
            answer = await out.send("POST", url, CREDENTIAL)
            assert (answer.status, answer.get("location"), len(seen)) == (307, location, 1)
            server.close()
        assert [place.connections for place in up.at.values()] == [0, 0]
    assert not reached.is_set()

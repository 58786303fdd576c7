"""A credential is on the wire and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy_addon.mitm.gate import Again, Outcome
from proxy_addon.mitm.hooks import AnsweredErrand, PrepareErrand
from tests.unit.mitm.clients import curl
from tests.unit.mitm.fake_gate import PAY, FakeGate, FakeTicket
from tests.unit.mitm.mitmdump import mitmdump
from tests.unit.mitm.proxy import running_proxy
from tests.unit.mitm.servers import Exchange, Exchange2, h1_server, h2_server, server_tls
from tests.unit.mitm.test_replay import shop


@pytest.mark.fresh
@pytest.mark.parametrize(
    ("warm", "fail"), [("", ""), ("1", ""), ("", "answered prepare_now"), ("1", "received wants finished")]
)
async def test_no_secret_in_logs_or_flow_files(
    confdir: Path, pem: Path, tmp_path: Path, warm: str, fail: str
) -> None:
    flows = tmp_path / "flows"

    async def moody(x: Exchange | Exchange2) -> None:
        if x.request.path == "/cut" and x.request.paid:
            await x.begin(200)
            await x.data(b"some")
            x.close()
        elif x.request.path == "/gone" and x.request.paid:
            x.close()
        else:
            await shop(x)

    arguments = ("--set", "flow_detail=4", "-w", str(flows), "--set", "termlog_verbosity=debug")
    async with (
        h1_server(moody) as h1,
        h2_server(moody, server_tls(pem, "h2")) as h2,
        mitmdump(confdir, *arguments, BURSAR_TEST_WARM=warm, BURSAR_TEST_FAIL=fail) as proxy,
    ):
        for up in (h1, h2):
            for path in ("/", "/cut", "/gone"):
                await curl(proxy.url, "-d", "find-this-body", up.url(path))
        paid = [r for r in (*h1.requests, *h2.requests) if r.paid]
    output = b"".join(proxy.output)
    assert bool(paid) == ("answered" not in fail)
    assert b"find-this-body" in output  # it does show what it may show
    assert b"find-this-body" in flows.read_bytes()
    assert b"mitmproxy has crashed" not in output
    for text in (output, flows.read_bytes()):
        assert b"c4n4ry" not in text
        assert b"Payment-Receipt" not in text or fail


async def test_nothing_is_paid_while_mitmproxy_logs_every_byte(confdir: Path, gate: FakeGate) -> None:
    gate.now = PAY
    async with h1_server(shop) as up, running_proxy(confdir, gate, proxy_debug=True) as proxy:
        got = await curl(proxy.url, up.url("/"))
        assert got.status == 402
        assert not gate.tickets


def test_no_secret_in_representations() -> None:
    ticket = FakeTicket(1, True, False)
    from mitmproxy import http

    errand = AnsweredErrand(ticket, http.Response.make(402), b"", Again(PAY))
    assert "c4n4ry" not in repr((PAY, Again(PAY), errand, PrepareErrand(ticket, outgoing=PAY)))
    assert ticket.outcome is not Outcome.COMPLETE

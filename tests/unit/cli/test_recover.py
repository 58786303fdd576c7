"""`bursar channels recover`: what it asks for before it looks, and what it tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proxy_addon.cli.main import bursar
from proxy_addon.cli.recovery_plan import Choice, nothing, tell_plan
from proxy_addon.methods.contract import ChainHead, ChainState, FoundChannel
from proxy_addon.methods.registry import METHODS
from proxy_addon.payer.adopting import Findings, Lost
from store.records import Channel
from tests.unit.cli.bookkeeper import PATH_USD
from tests.unit.cli.conftest import KEY, KEY_ENV
from tests.unit.methods import samples

HEAD = ChainHead(700, 1_800_000_000, 20_000_000_000)
(METHOD, _) = METHODS.values()


def choice(
    name: str = "0x" + "ab" * 32, *, requested: int | None = None, record: Channel | None = None
) -> Choice:
    found = FoundChannel(name, samples.scope(), samples.descriptor(), "0x" + "11" * 32, 42)
    state = ChainState(True, 1_000_000, 30_000, requested, HEAD)
    fees = METHOD.forced_fees(HEAD, requested=requested is not None)
    one = Lost(found, METHOD, state, record)
    return Choice("eip155:42431", one, PATH_USD, fees.usual, fees.most, fees.most_at_once)


def told(*choices: Choice, wallet: int = 5_000_000, known: int = 0, ended: int = 0) -> str:
    findings = {"eip155:42431": Findings(tuple(one.one for one in choices), ("0x",) * known, ended, HEAD)}

    def run() -> None:
        tell_plan(choices, findings, False, wallet={("eip155:42431", PATH_USD.address): wallet})

    import click

    command = click.Command("x", callback=run)
    done = CliRunner().invoke(command)
    assert done.exit_code == 0, done.output
    return done.output


def test_what_comes_back_and_what_it_costs_is_said() -> None:
    text = told(choice(), choice("0x" + "cd" * 32), known=3, ended=1)
    lines = text.splitlines()
    assert lines[1].split()[-9:] == [
        *("1.00", "0.03", "0.97"),
        "0.002058",
        "0.0246",
        "pathUSD",
        "not",
        "on",
        "record",
    ]
    assert "1.94 pathUSD come back from 2 channels, less what payees can prove" in text
    assert "costs 0.004116 pathUSD in network fees as a rule, 0.0492 pathUSD at most" in text
    assert "3 more on record are left alone" in text
    assert "1 more are closed already" in text


def test_the_second_step_alone_costs_less() -> None:
    first, second = choice(), choice(requested=1)
    assert second.usual_fee < first.usual_fee
    assert second.most_fee < first.most_fee
    assert "close requested" in told(second)


def test_a_wallet_that_cannot_pay_the_fees_is_told_so() -> None:
    assert "by force it must have 0.0164 pathUSD at a time: fund it first" in told(choice(), wallet=100)
    assert "fund it" not in told(choice())


def test_nothing_to_recover_says_how_far_it_looked() -> None:
    findings = {"eip155:42431": Findings((), ("0x1",), 2, HEAD)}
    assert nothing(findings) == (
        "nothing to recover on eip155:42431 up to block 700 (1 more on record are left alone: see bursar channels"
        " list; 2 more are closed already)"
    )
    assert "the config names none" in nothing({})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name one channel, or --all; or look first, with --dry-run"),
        (("--all", "0x1234"), "name one channel, or --all"),
        (("--all", "--force", "--server", "https://a.example/"), "--force does without servers"),
        (("--all", "--force", "--up-to", "1"), "--force does without servers"),
        (("--all", "--server", "ftp://a.example/"), "is no http(s) URL"),
        (("--all", "--from-block", "-1"), "--from-block"),
    ],
)
def test_what_it_wants(config: Path, runner: CliRunner, arguments: tuple[str, ...], says: str) -> None:
    done = runner.invoke(bursar, ["channels", "recover", *arguments, "-c", str(config)], env={KEY_ENV: KEY})
    assert done.exit_code == 2
    assert says in done.stderr


def test_a_chain_that_does_not_answer_is_one_line(config: Path, runner: CliRunner, monkeypatch: Any) -> None:
    text = config.read_text()
    config.write_text(text.replace("https://rpc.moderato.tempo.xyz", "http://127.0.0.1:1/"))
    done = runner.invoke(bursar, ["channels", "recover", "--dry-run", "-c", str(config)], env={KEY_ENV: KEY})
    assert done.exit_code == 1
    assert "chain 42431: no usable answer" in done.stderr
    assert not (config.parent / "store").exists()

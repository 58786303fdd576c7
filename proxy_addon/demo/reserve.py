"""The TIP-1034 channel reserve, operation by operation, on the simulated chain's storage.

Written from the TIP's execution semantics; the names of errors and events are those of its interface. Not modelled:
TIP-403 transfer policies, signatures other than secp256k1, payment lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from proxy_addon.demo.state import Execution, Revert, Slot, is_token
from proxy_addon.methods.abi import (
    WORD,
    ZERO_ADDRESS,
    address_word,
    bytes32_word,
    read_address,
    read_uint,
    selector,
    to_bytes,
    to_hex,
    uint_word,
    words,
)
from proxy_addon.methods.tempo_session.calls import (
    AMOUNT_BITS,
    DESCRIPTOR_FIELDS,
    GET_STATE,
    OPEN,
    REQUEST_CLOSE,
    TOP_UP,
    WITHDRAW,
    ReserveState,
    channel_id,
    descriptor_words,
    parse_open,
)
from proxy_addon.methods.tempo_session.v2 import RESERVE
from proxy_addon.methods.tempo_session.voucher import V2
from proxy_addon.methods.tempo_tx import recover

_DESCRIPTOR_ABI: Final = "(address,address,address,address,bytes32,address,bytes32)"
SETTLE: Final = selector(f"settle({_DESCRIPTOR_ABI},uint96,bytes)")
CLOSE: Final = selector(f"close({_DESCRIPTOR_ABI},uint96,uint96,bytes)")
_GET_CHANNEL: Final = selector(f"getChannel({_DESCRIPTOR_ABI})")
_COMPUTE_ID: Final = selector("computeChannelId(address,address,address,address,bytes32,address,bytes32)")

OPENED: Final = "ChannelOpened(bytes32,address,address,address,address,address,bytes32,bytes32,uint96)"
SETTLED: Final = "Settled(bytes32,address,address,uint96,uint96,uint96)"
TOPPED_UP: Final = "TopUp(bytes32,address,address,uint96,uint96)"
CLOSE_REQUESTED: Final = "CloseRequested(bytes32,address,address,uint256)"
CLOSE_CANCELLED: Final = "CloseRequestCancelled(bytes32,address,address)"
CLOSED: Final = "ChannelClosed(bytes32,address,address,uint96,uint96)"

GRACE_S: Final = 15 * 60
_AMOUNT_MAX: Final = (1 << AMOUNT_BITS) - 1

GAS: Final[Mapping[bytes, int]] = {
    OPEN: 312_000,
    TOP_UP: 75_000,
    SETTLE: 90_000,
    CLOSE: 101_000,
    REQUEST_CLOSE: 55_000,
    WITHDRAW: 80_000,
}
"""As measured for open and close on a development chain; the others are guesses of the same order."""


def load_state(word: int) -> ReserveState:
    """From the one storage slot that a channel has."""
    return ReserveState(
        settled=word & _AMOUNT_MAX,
        deposit=(word >> AMOUNT_BITS) & _AMOUNT_MAX,
        close_requested_at=word >> (2 * AMOUNT_BITS),
    )


def pack_state(state: ReserveState) -> int:
    return state.settled | state.deposit << AMOUNT_BITS | state.close_requested_at << (2 * AMOUNT_BITS)


def slot(channel: str) -> Slot:
    return (RESERVE, channel)


@dataclass(frozen=True, slots=True)
class _Channel:
    """An existing channel, as an operation finds it."""

    id: str
    descriptor: Mapping[str, str]
    state: ReserveState

    @property
    def topics(self) -> tuple[bytes, ...]:
        descriptor = self.descriptor
        return (
            bytes32_word(self.id),
            address_word(descriptor["payer"]),
            address_word(descriptor["payee"]),
        )


def _open(run: Execution, data: bytes) -> None:
    call = parse_open(data)
    if call.deposit == 0:
        raise Revert("ZeroDeposit")
    if not is_token(call.token):
        raise Revert("InvalidToken")
    if call.payee == ZERO_ADDRESS or is_token(call.payee):
        raise Revert("InvalidPayee")
    descriptor = {
        "payer": run.sender,
        "payee": call.payee,
        "operator": call.operator,
        "token": call.token,
        "salt": call.salt,
        "authorizedSigner": call.authorized_signer,
        "expiringNonceHash": to_hex(run.nonce_hash),
    }
    channel = channel_id(descriptor, escrow=RESERVE, chain_id=run.chain_id)
    if run.get(slot(channel)) or channel in run.opened:
        raise Revert("ChannelAlreadyExists")
    run.opened.add(channel)
    run.move(call.token, run.sender, RESERVE, call.deposit)
    opened = _Channel(channel, descriptor, ReserveState(0, call.deposit, 0))
    run.put(slot(channel), pack_state(opened.state))
    run.emit(
        RESERVE,
        OPENED,
        opened.topics,
        address_word(call.operator)
        + address_word(call.token)
        + address_word(call.authorized_signer)
        + bytes32_word(call.salt)
        + run.nonce_hash
        + uint_word(call.deposit),
    )


def _top_up(run: Execution, data: bytes) -> None:
    channel, (amount_word,) = _load(run, data, 1)
    _require_payer(run, channel)
    amount = read_uint(amount_word, AMOUNT_BITS, "additionalDeposit")
    state = channel.state
    if amount > _AMOUNT_MAX - state.deposit:
        raise Revert("DepositOverflow")
    if state.close_requested_at:
        run.emit(RESERVE, CLOSE_CANCELLED, channel.topics, b"")
    deposit = state.deposit + amount
    run.put(slot(channel.id), pack_state(ReserveState(state.settled, deposit, 0)))
    if amount:
        run.move(channel.descriptor["token"], run.sender, RESERVE, amount)
        run.emit(RESERVE, TOPPED_UP, channel.topics, uint_word(amount) + uint_word(deposit))


def _request_close(run: Execution, data: bytes) -> None:
    channel, _ = _load(run, data, 0)
    _require_payer(run, channel)
    state = channel.state
    if state.close_requested_at:
        return
    run.put(slot(channel.id), pack_state(ReserveState(state.settled, state.deposit, run.timestamp)))
    run.emit(RESERVE, CLOSE_REQUESTED, channel.topics, uint_word(run.timestamp + GRACE_S))


def _withdraw(run: Execution, data: bytes) -> None:
    channel, _ = _load(run, data, 0)
    _require_payer(run, channel)
    requested = channel.state.close_requested_at
    if not requested or run.timestamp < requested + GRACE_S:
        raise Revert("CloseNotReady")
    _end(run, channel, capture=channel.state.settled)


def _settle(run: Execution, data: bytes) -> None:
    channel, (amount_word, offset) = _load(run, data, 2, dynamic=True)
    _require_payee(run, channel)
    amount = read_uint(amount_word, AMOUNT_BITS, "cumulativeAmount")
    state = channel.state
    if amount > state.deposit:
        raise Revert("AmountExceedsDeposit")
    if amount <= state.settled:
        raise Revert("AmountNotIncreasing")
    _require_voucher(run, channel, amount, _signature(data, offset, 2))
    settled = ReserveState(amount, state.deposit, state.close_requested_at)
    run.put(slot(channel.id), pack_state(settled))
    run.move(channel.descriptor["token"], RESERVE, channel.descriptor["payee"], amount - state.settled)
    amounts = uint_word(amount) + uint_word(amount - state.settled) + uint_word(amount)
    run.emit(RESERVE, SETTLED, channel.topics, amounts)


def _close(run: Execution, data: bytes) -> None:
    channel, (amount_word, capture_word, offset) = _load(run, data, 3, dynamic=True)
    _require_payee(run, channel)
    amount = read_uint(amount_word, AMOUNT_BITS, "cumulativeAmount")
    capture = read_uint(capture_word, AMOUNT_BITS, "captureAmount")
    if not channel.state.settled <= capture <= amount:
        raise Revert("CaptureAmountInvalid")
    if capture > channel.state.deposit:
        raise Revert("AmountExceedsDeposit")
    if capture > channel.state.settled:
        _require_voucher(run, channel, amount, _signature(data, offset, 3))
    _end(run, channel, capture=capture)


_OPERATIONS: Final[Mapping[bytes, Callable[[Execution, bytes], None]]] = {
    OPEN: _open,
    TOP_UP: _top_up,
    REQUEST_CLOSE: _request_close,
    WITHDRAW: _withdraw,
    SETTLE: _settle,
    CLOSE: _close,
}


def execute(run: Execution, data: bytes) -> None:
    """One call of the reserve. Raises `Revert`; calldata that no encoder writes reverts too."""
    operation = _OPERATIONS.get(data[:4])
    if operation is None:
        raise Revert("UnknownFunctionSelector")
    try:
        operation(run, data)
    except ValueError as error:
        raise Revert(f"InvalidCalldata: {error}") from error


def view(data: bytes, read: Callable[[Slot], int], chain_id: int) -> bytes:
    """The getters. Raises `Revert`."""
    try:
        match data[:4]:
            case selected if selected == GET_STATE:
                (channel,) = words(data[4:], 1, "arguments")
                return _state_words(load_state(read(slot(to_hex(channel)))))
            case selected if selected == _GET_CHANNEL:
                descriptor = _descriptor(data[4:])
                channel_word = _id(descriptor, chain_id)
                return descriptor_words(descriptor) + _state_words(load_state(read(slot(channel_word))))
            case selected if selected == _COMPUTE_ID:
                return bytes32_word(_id(_descriptor(data[4:]), chain_id))
    except ValueError as error:
        raise Revert(f"InvalidCalldata: {error}") from error
    raise Revert("UnknownFunctionSelector")


def encode_close(descriptor: Mapping[str, str], amount: int, capture: int, signature: bytes) -> bytes:
    numbers = uint_word(amount, AMOUNT_BITS) + uint_word(capture, AMOUNT_BITS)
    return CLOSE + descriptor_words(descriptor) + numbers + _tail(3, signature)


def encode_settle(descriptor: Mapping[str, str], amount: int, signature: bytes) -> bytes:
    return SETTLE + descriptor_words(descriptor) + uint_word(amount, AMOUNT_BITS) + _tail(2, signature)


def parse_top_up(data: bytes) -> tuple[dict[str, str], int]:
    """The descriptor and amount of a ``topUp`` call. Raises ``ValueError`` for any other."""
    if data[:4] != TOP_UP:
        raise ValueError("not a topUp call")
    size = len(DESCRIPTOR_FIELDS) * WORD
    (amount,) = words(data[4 + size :], 1, "topUp's amount")
    return _descriptor(data[4 : 4 + size]), read_uint(amount, AMOUNT_BITS, "additionalDeposit")


def _end(run: Execution, channel: _Channel, *, capture: int) -> None:
    """Pays out what is left and forgets the channel."""
    descriptor, state = channel.descriptor, channel.state
    refund = state.deposit - capture
    run.put(slot(channel.id), 0)
    run.move(descriptor["token"], RESERVE, descriptor["payee"], capture - state.settled)
    run.move(descriptor["token"], RESERVE, descriptor["payer"], refund)
    run.emit(RESERVE, CLOSED, channel.topics, uint_word(capture) + uint_word(refund))


def _load(
    run: Execution, data: bytes, arguments: int, *, dynamic: bool = False
) -> tuple[_Channel, tuple[bytes, ...]]:
    """The channel whose descriptor comes first in the calldata, and the words that follow it."""
    size = len(DESCRIPTOR_FIELDS) * WORD
    descriptor = _descriptor(data[4 : 4 + size])
    rest = data[4 + size :]
    if dynamic:
        rest = rest[: arguments * WORD]
    found = words(rest, arguments, "arguments")
    channel = _id(descriptor, run.chain_id)
    state = load_state(run.get(slot(channel)))
    if state.deposit == 0:
        raise Revert("ChannelNotFound")
    return _Channel(channel, descriptor, state), found


def _descriptor(data: bytes) -> dict[str, str]:
    fields = zip(DESCRIPTOR_FIELDS, words(data, len(DESCRIPTOR_FIELDS), "descriptor"), strict=True)
    return {
        name: to_hex(word) if name in ("salt", "expiringNonceHash") else read_address(word, name)
        for name, word in fields
    }


def _id(descriptor: Mapping[str, str], chain_id: int) -> str:
    return channel_id(descriptor, escrow=RESERVE, chain_id=chain_id)


def _tail(heads: int, data: bytes) -> bytes:
    """An offset and, after it, ``bytes``: the last argument of settle and close. Offsets count from the arguments'
    start, past the descriptor and the `heads` words behind it."""
    offset = (len(DESCRIPTOR_FIELDS) + heads) * WORD
    return uint_word(offset) + uint_word(len(data)) + data + bytes(-len(data) % WORD)


def _signature(data: bytes, offset_word: bytes, heads: int) -> bytes:
    offset = (len(DESCRIPTOR_FIELDS) + heads) * WORD
    if int.from_bytes(offset_word, "big") != offset:
        raise ValueError("the signature is not where an encoder puts it")
    tail = data[4 + offset :]
    length = int.from_bytes(tail[:WORD], "big")
    if len(tail) != WORD + length + -length % WORD or any(tail[WORD + length :]):
        raise ValueError("the signature is not encoded as bytes")
    return tail[WORD : WORD + length]


def _require_payer(run: Execution, channel: _Channel) -> None:
    if run.sender != channel.descriptor["payer"]:
        raise Revert("NotPayer")


def _require_payee(run: Execution, channel: _Channel) -> None:
    operator = channel.descriptor["operator"]
    if run.sender != channel.descriptor["payee"] and (operator == ZERO_ADDRESS or run.sender != operator):
        raise Revert("NotPayeeOrOperator")


def _require_voucher(run: Execution, channel: _Channel, amount: int, signature: bytes) -> None:
    digest = V2.digest(chain_id=run.chain_id, escrow=RESERVE, channel_id=channel.id, amount=amount)
    if not signed_by(voucher_signer(channel.descriptor), digest, signature):
        raise Revert("InvalidSignature")


def voucher_signer(descriptor: Mapping[str, str]) -> str:
    """Who signs a channel's vouchers: the payer, unless the descriptor names another."""
    signer = descriptor["authorizedSigner"]
    return descriptor["payer"] if signer == ZERO_ADDRESS else signer


def signed_by(signer: str, digest: bytes, signature: bytes) -> bool:
    try:
        return recover(digest, signature) == to_bytes(signer)
    except ValueError:
        return False


def _state_words(state: ReserveState) -> bytes:
    return uint_word(state.settled) + uint_word(state.deposit) + uint_word(state.close_requested_at)

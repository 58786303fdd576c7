// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @dev The three TIP-20 functions that the reserve needs. A TIP-20 token reverts instead of returning false,
/// but the result is checked all the same.
interface IToken {
    function transfer(address to, uint256 amount) external returns (bool);
    function transferFrom(address from, address to, uint256 amount) external returns (bool);
}

/// @dev TIP-1020: recovers the signer of any Tempo signature type and reverts on a bad signature.
interface ISignatureVerifier {
    function recover(bytes32 hash, bytes calldata signature) external view returns (address signer);
}

/// @title TIP-1034 channel reserve as an ordinary contract, for a local chain that lacks the precompile.
///
/// The code is put at the precompile's address with `anvil_setCode`, which runs no constructor: nothing here may
/// rely on an immutable or on an initialised storage variable. Two things that only the real precompile can do are
/// supplied from outside by the JSON-RPC shim (`chain.py`), which writes storage directly:
///
///  - the enclosing transaction's `expiringNonceHash`, in `openContexts` (keyed by sender and calldata, so that any
///    number of opens can be in flight at the same time);
///  - an unlimited allowance of the payer to this contract, in place of the system transfer.
///
/// Not modelled: TIP-403 transfer policies and payment-lane classification.
contract TempoChannelReserve {
    struct ChannelDescriptor {
        address payer;
        address payee;
        address operator;
        address token;
        bytes32 salt;
        address authorizedSigner;
        bytes32 expiringNonceHash;
    }

    struct ChannelState {
        uint96 settled;
        uint96 deposit;
        uint32 closeRequestedAt;
    }

    struct Channel {
        ChannelDescriptor descriptor;
        ChannelState state;
    }

    event ChannelOpened(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        address operator,
        address token,
        address authorizedSigner,
        bytes32 salt,
        bytes32 expiringNonceHash,
        uint96 deposit
    );
    event Settled(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint96 cumulativeAmount,
        uint96 deltaPaid,
        uint96 newSettled
    );
    event TopUp(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint96 additionalDeposit,
        uint96 newDeposit
    );
    event CloseRequested(
        bytes32 indexed channelId, address indexed payer, address indexed payee, uint256 closeGraceEnd
    );
    event ChannelClosed(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint96 settledToPayee,
        uint96 refundedToPayer
    );
    event CloseRequestCancelled(bytes32 indexed channelId, address indexed payer, address indexed payee);

    error ChannelAlreadyExists();
    error ChannelNotFound();
    error NotPayer();
    error NotPayeeOrOperator();
    error InvalidPayee();
    error InvalidToken();
    error ZeroDeposit();
    error ExpiringNonceHashNotSet();
    error InvalidSignature();
    error AmountExceedsDeposit();
    error AmountNotIncreasing();
    error CaptureAmountInvalid();
    error CloseNotReady();
    error DepositOverflow();
    /// @dev Not part of the TIP: a token that returns false.
    error TransferFailed();

    uint64 public constant CLOSE_GRACE_PERIOD = 15 minutes;
    bytes32 public constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channelId,uint96 cumulativeAmount)");

    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    ISignatureVerifier private constant VERIFIER = ISignatureVerifier(0x5165300000000000000000000000000000000000);
    /// @dev Every TIP-20 token's address starts with these twelve bytes.
    bytes12 private constant TIP20_PREFIX = 0x20c000000000000000000000;

    // Storage layout. The shim writes slots 1 and 2: keep them in step with `ChannelReserve` in chain.py.
    /// @dev Slot 0. Absent (all zero) means: never opened, or closed.
    mapping(bytes32 channelId => ChannelState) private channels;
    /// @dev Slot 1. The hash that a simulated open sees: no signed transaction encloses it, so no real hash exists.
    bytes32 private simulatedContext;
    /// @dev Slot 2. keccak256(abi.encode(sender, keccak256(calldata of open))) => expiringNonceHash.
    mapping(bytes32 key => bytes32) private openContexts;

    // ---------------------------------------------------------------- payer

    function open(
        address payee,
        address operator,
        address token,
        uint96 deposit,
        bytes32 salt,
        address authorizedSigner
    ) external returns (bytes32 channelId) {
        if (deposit == 0) revert ZeroDeposit();
        if (!_isTip20(token)) revert InvalidToken();
        if (payee == address(0) || _isTip20(payee)) revert InvalidPayee();

        ChannelDescriptor memory d = ChannelDescriptor({
            payer: msg.sender,
            payee: payee,
            operator: operator,
            token: token,
            salt: salt,
            authorizedSigner: authorizedSigner,
            expiringNonceHash: _enclosingContext()
        });
        channelId = _channelId(d);

        // Deleted channels leave no state behind, so the TIP asks for a second, per-transaction memory.
        if (channels[channelId].deposit != 0 || _openedInThisTransaction(channelId)) revert ChannelAlreadyExists();
        _rememberOpened(channelId);

        channels[channelId] = ChannelState({settled: 0, deposit: deposit, closeRequestedAt: 0});
        _pull(token, msg.sender, deposit);
        emit ChannelOpened(
            channelId,
            msg.sender,
            payee,
            operator,
            token,
            authorizedSigner,
            salt,
            d.expiringNonceHash,
            deposit
        );
    }

    function topUp(ChannelDescriptor calldata descriptor, uint96 additionalDeposit) external {
        (bytes32 channelId, ChannelState memory state) = _load(descriptor);
        if (msg.sender != descriptor.payer) revert NotPayer();
        if (additionalDeposit > type(uint96).max - state.deposit) revert DepositOverflow();

        if (state.closeRequestedAt != 0) {
            state.closeRequestedAt = 0;
            emit CloseRequestCancelled(channelId, descriptor.payer, descriptor.payee);
        }
        state.deposit += additionalDeposit;
        channels[channelId] = state;

        if (additionalDeposit != 0) {
            _pull(descriptor.token, descriptor.payer, additionalDeposit);
            emit TopUp(channelId, descriptor.payer, descriptor.payee, additionalDeposit, state.deposit);
        }
    }

    function requestClose(ChannelDescriptor calldata descriptor) external {
        (bytes32 channelId, ChannelState memory state) = _load(descriptor);
        if (msg.sender != descriptor.payer) revert NotPayer();
        if (state.closeRequestedAt != 0) return;

        channels[channelId].closeRequestedAt = uint32(block.timestamp);
        emit CloseRequested(
            channelId, descriptor.payer, descriptor.payee, block.timestamp + CLOSE_GRACE_PERIOD
        );
    }

    function withdraw(ChannelDescriptor calldata descriptor) external {
        (bytes32 channelId, ChannelState memory state) = _load(descriptor);
        if (msg.sender != descriptor.payer) revert NotPayer();
        if (state.closeRequestedAt == 0) revert CloseNotReady();
        if (block.timestamp < state.closeRequestedAt + CLOSE_GRACE_PERIOD) revert CloseNotReady();

        uint96 refund = state.deposit - state.settled;
        delete channels[channelId];
        _push(descriptor.token, descriptor.payer, refund);
        emit ChannelClosed(channelId, descriptor.payer, descriptor.payee, state.settled, refund);
    }

    // ---------------------------------------------------------------- payee or operator

    function settle(ChannelDescriptor calldata descriptor, uint96 cumulativeAmount, bytes calldata signature)
        external
    {
        (bytes32 channelId, ChannelState memory state) = _load(descriptor);
        _requirePayeeSide(descriptor);
        if (cumulativeAmount > state.deposit) revert AmountExceedsDeposit();
        if (cumulativeAmount <= state.settled) revert AmountNotIncreasing();
        _requireVoucher(descriptor, channelId, cumulativeAmount, signature);

        uint96 delta = cumulativeAmount - state.settled;
        channels[channelId].settled = cumulativeAmount;
        _push(descriptor.token, descriptor.payee, delta);
        emit Settled(
            channelId, descriptor.payer, descriptor.payee, cumulativeAmount, delta, cumulativeAmount
        );
    }

    function close(
        ChannelDescriptor calldata descriptor,
        uint96 cumulativeAmount,
        uint96 captureAmount,
        bytes calldata signature
    ) external {
        (bytes32 channelId, ChannelState memory state) = _load(descriptor);
        _requirePayeeSide(descriptor);
        if (captureAmount < state.settled || captureAmount > cumulativeAmount) revert CaptureAmountInvalid();
        // A voucher above the deposit is fine here: the capture is what is bounded by the reserve.
        if (captureAmount > state.deposit) revert AmountExceedsDeposit();
        if (captureAmount > state.settled) {
            _requireVoucher(descriptor, channelId, cumulativeAmount, signature);
        }

        uint96 refund = state.deposit - captureAmount;
        delete channels[channelId];
        _push(descriptor.token, descriptor.payee, captureAmount - state.settled);
        _push(descriptor.token, descriptor.payer, refund);
        emit ChannelClosed(channelId, descriptor.payer, descriptor.payee, captureAmount, refund);
    }

    // ---------------------------------------------------------------- views

    function getChannel(ChannelDescriptor calldata descriptor) external view returns (Channel memory channel) {
        channel.descriptor = descriptor;
        channel.state = channels[_channelId(descriptor)];
    }

    function getChannelState(bytes32 channelId) external view returns (ChannelState memory) {
        return channels[channelId];
    }

    function getChannelStatesBatch(bytes32[] calldata channelIds)
        external
        view
        returns (ChannelState[] memory states)
    {
        states = new ChannelState[](channelIds.length);
        for (uint256 i = 0; i < channelIds.length; i++) {
            states[i] = channels[channelIds[i]];
        }
    }

    function computeChannelId(
        address payer,
        address payee,
        address operator,
        address token,
        bytes32 salt,
        address authorizedSigner,
        bytes32 expiringNonceHash
    ) external view returns (bytes32) {
        return _channelId(
            ChannelDescriptor(payer, payee, operator, token, salt, authorizedSigner, expiringNonceHash)
        );
    }

    function getVoucherDigest(bytes32 channelId, uint96 cumulativeAmount) external view returns (bytes32) {
        return _voucherDigest(channelId, cumulativeAmount);
    }

    function domainSeparator() external view returns (bytes32) {
        return _domainSeparator();
    }

    // ---------------------------------------------------------------- internals

    /// @dev The id and the state of an existing channel.
    function _load(ChannelDescriptor calldata descriptor)
        private
        view
        returns (bytes32 channelId, ChannelState memory state)
    {
        channelId = _channelId(descriptor);
        state = channels[channelId];
        if (state.deposit == 0) revert ChannelNotFound();
    }

    function _channelId(ChannelDescriptor memory d) private view returns (bytes32) {
        return keccak256(
            abi.encode(
                d.payer,
                d.payee,
                d.operator,
                d.token,
                d.salt,
                d.authorizedSigner,
                d.expiringNonceHash,
                address(this),
                block.chainid
            )
        );
    }

    /// @dev Must run in the frame of `open`: the key is made from its calldata.
    function _enclosingContext() private view returns (bytes32 context) {
        context = openContexts[keccak256(abi.encode(msg.sender, keccak256(msg.data)))];
        if (context == 0) context = simulatedContext;
        if (context == 0) revert ExpiringNonceHashNotSet();
    }

    function _openedInThisTransaction(bytes32 channelId) private view returns (bool opened) {
        assembly ("memory-safe") {
            opened := tload(channelId)
        }
    }

    function _rememberOpened(bytes32 channelId) private {
        assembly ("memory-safe") {
            tstore(channelId, 1)
        }
    }

    function _requirePayeeSide(ChannelDescriptor calldata descriptor) private view {
        if (msg.sender == descriptor.payee) return;
        if (descriptor.operator != address(0) && msg.sender == descriptor.operator) return;
        revert NotPayeeOrOperator();
    }

    function _requireVoucher(
        ChannelDescriptor calldata descriptor,
        bytes32 channelId,
        uint96 cumulativeAmount,
        bytes calldata signature
    ) private view {
        address expected =
            descriptor.authorizedSigner == address(0) ? descriptor.payer : descriptor.authorizedSigner;
        try VERIFIER.recover(_voucherDigest(channelId, cumulativeAmount), signature) returns (address signer) {
            if (signer != expected) revert InvalidSignature();
        } catch {
            revert InvalidSignature();
        }
    }

    function _voucherDigest(bytes32 channelId, uint96 cumulativeAmount) private view returns (bytes32) {
        bytes32 structHash = keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, cumulativeAmount));
        return keccak256(abi.encodePacked(hex"1901", _domainSeparator(), structHash));
    }

    function _domainSeparator() private view returns (bytes32) {
        return keccak256(
            abi.encode(
                DOMAIN_TYPEHASH,
                keccak256("TIP20 Channel Reserve"),
                keccak256("1"),
                block.chainid,
                address(this)
            )
        );
    }

    function _isTip20(address token) private pure returns (bool) {
        return bytes12(bytes20(token)) == TIP20_PREFIX;
    }

    function _pull(address token, address from, uint96 amount) private {
        if (!IToken(token).transferFrom(from, address(this), amount)) revert TransferFailed();
    }

    function _push(address token, address to, uint96 amount) private {
        if (amount != 0 && !IToken(token).transfer(to, amount)) revert TransferFailed();
    }
}

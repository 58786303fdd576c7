// An oracle for differential tests: what mppx and viem make of a value. One JSON request per line on standard input,
// one JSON answer per line on standard output, in order: {"id"?, "op", …} → {"id"?, "ok": …} or {"id"?, "error", "name"}.
//
// Integers that may be large travel as decimal strings, in both directions. See `operations` for what there is.

import { createInterface } from 'node:readline'

import { BodyDigest, Challenge, Credential, Receipt } from 'mppx'
import { Session, SessionLegacy } from 'mppx/tempo'
import { encodeFunctionData, hashTypedData } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { Transaction } from 'viem/tempo'

const { Channel, Protocol, escrowAbi } = Session.Precompile
const { escrowAbi: legacyEscrowAbi } = SessionLegacy.Session.Chain

// The two voucher families, spelled out from the protocol's documents: mppx's own functions are compared with them
// in test_testbed.py, so that the oracle does not depend on one reading.
const voucherFamilies = {
  v1: { name: 'Tempo Stream Channel', amountType: 'uint128' },
  v2: { name: 'TIP20 Channel Reserve', amountType: 'uint96' },
}

function voucherTypedData({ version = 'v2', escrow, chainId, channelId, cumulativeAmount }) {
  const { name, amountType } = voucherFamilies[version]
  return {
    domain: { name, version: '1', chainId: Number(chainId), verifyingContract: escrow },
    types: {
      Voucher: [
        { name: 'channelId', type: 'bytes32' },
        { name: 'cumulativeAmount', type: amountType },
      ],
    },
    primaryType: 'Voucher',
    message: { channelId, cumulativeAmount: BigInt(cumulativeAmount) },
  }
}

function readChallenge(value) {
  return typeof value === 'string' ? Challenge.deserialize(value) : Challenge.from(value)
}

/** Turns the decimal strings of a transaction request into the bigints that viem wants. */
function readTransaction({ calls, nonceKey, gas, maxFeePerGas, maxPriorityFeePerGas, ...rest }) {
  const big = { gas, maxFeePerGas, maxPriorityFeePerGas, nonceKey }
  const numbers = Object.fromEntries(
    Object.entries(big)
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => [name, BigInt(value)]),
  )
  const convert = ({ value, ...call }) => ({ ...call, ...(value === undefined ? {} : { value: BigInt(value) }) })
  return { ...rest, ...numbers, calls: calls.map(convert) }
}

const operations = {
  // WWW-Authenticate. With `secretKey` instead of `id`, mppx computes the HMAC id.
  challengeHeader: ({ challenge }) => Challenge.serialize(Challenge.from(challenge)),
  parseChallenge: ({ header }) => Challenge.deserialize(header),
  parseChallenges: ({ header }) => Challenge.deserializeList(header),
  verifyChallenge: ({ header, secretKey }) => Challenge.verify(Challenge.deserialize(header), { secretKey }),

  // Authorization; `challenge` is a header value or an object.
  credential: ({ challenge, payload, source }) =>
    Credential.serialize(Credential.from({ challenge: readChallenge(challenge), payload, source })),
  parseCredential: ({ header }) => Credential.deserialize(header),

  receipt: ({ receipt }) => Receipt.serialize(receipt),
  parseReceipt: ({ header }) => Receipt.deserialize(header),

  bodyDigest: ({ body }) => BodyDigest.compute(body),

  // v2: the seven descriptor fields, escrow, chainId. v1: payer, payee, token, salt, authorizedSigner, escrow, chainId.
  channelId: ({ version = 'v2', escrow, chainId, ...descriptor }) =>
    version === 'v1'
      ? SessionLegacy.Session.Channel.computeId({ ...descriptor, escrowContract: escrow, chainId: Number(chainId) })
      : Channel.computeId({ ...descriptor, escrow, chainId: Number(chainId) }),

  voucherDigest: (voucher) => hashTypedData(voucherTypedData(voucher)),
  signVoucher: ({ privateKey, ...voucher }) =>
    privateKeyToAccount(privateKey).signTypedData(voucherTypedData(voucher)),
  // mppx's own judgement of a signed voucher.
  verifyVoucher: ({ version = 'v2', escrow, chainId, channelId, cumulativeAmount, signature, signer }) => {
    const { Voucher } = version === 'v1' ? SessionLegacy.Session : Session.Precompile
    const voucher = { channelId, cumulativeAmount: BigInt(cumulativeAmount), signature }
    return Voucher.verifyVoucher(escrow, Number(chainId), voucher, signer)
  },

  // Calldata of the channel reserve (v2) or of the escrow contract (v1).
  encodeCall: ({ version = 'v2', functionName, args }) =>
    encodeFunctionData({ abi: version === 'v1' ? legacyEscrowAbi : escrowAbi, functionName, args }),

  // Tempo (0x76) transactions. `transaction` of signTransaction: as viem names the fields; `feePayer: true` signs for
  // a sponsor.
  signTransaction: ({ privateKey, transaction }) =>
    privateKeyToAccount(privateKey).signTransaction(readTransaction(transaction), {
      serializer: Transaction.serialize,
    }),
  parseTransaction: ({ transaction }) => Transaction.deserialize(transaction),
  expiringNonceHash: ({ transaction, sender, feePayer = false }) => {
    const parsed = Transaction.deserialize(transaction)
    return Channel.computeExpiringNonceHash(
      Channel.transactionForExpiringNonceHash({ feePayer, transaction: parsed }),
      { sender: sender ?? parsed.from },
    )
  },

  // Server-sent events and WebSocket frames of a metered stream.
  formatEvent: ({ kind, value }) =>
    ({
      message: Protocol.formatMessageEvent,
      needVoucher: Protocol.formatNeedVoucherEvent,
      receipt: Protocol.formatReceiptEvent,
    })[kind](value),
  parseEvent: ({ event }) => Protocol.parseEvent(event),
  formatFrame: ({ kind, value }) =>
    ({
      authorization: Protocol.formatAuthorizationMessage,
      message: Protocol.formatApplicationMessage,
      closeRequest: Protocol.formatCloseRequestMessage,
      closeReady: Protocol.formatCloseReadyMessage,
      needVoucher: Protocol.formatNeedVoucherMessage,
      receipt: Protocol.formatReceiptMessage,
      error: Protocol.formatErrorMessage,
    })[kind](value),
  parseFrame: ({ frame }) => Protocol.parseMessage(frame),
}

const withBigints = (_key, value) => (typeof value === 'bigint' ? value.toString() : value)

for await (const line of createInterface({ input: process.stdin })) {
  let id
  let answer
  try {
    const request = JSON.parse(line)
    id = request.id
    const operation = operations[request.op]
    if (!operation) throw new Error(`no such operation: ${request.op}`)
    const { id: _id, op: _op, ...parameters } = request
    answer = { ok: (await operation(parameters)) ?? null }
  } catch (error) {
    answer = { error: String(error.message ?? error), name: error.name ?? 'Error' }
  }
  process.stdout.write(`${JSON.stringify({ ...(id === undefined ? {} : { id }), ...answer }, withBigints)}\n`)
}

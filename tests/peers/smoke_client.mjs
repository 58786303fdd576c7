// mppx's own client against the testbed: shows that chain, contract and server work, with nothing of ours in between.
//
//   node smoke_client.mjs --rpc URL --http URL --private-key 0x… [--requests 3] [--tokens 8] [--messages 0] [--route /req] [--protocol v1]
//
// Opens a channel, pays for requests and a stream, closes, and prints one JSON line of what happened. With --wallet
// FILE it keeps its channels in that file, and closes nothing.

import { parseArgs } from 'node:util'

import { sessionLegacyManager, sessionManager } from 'mppx/client'
import { createClient, defineChain, http } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { tempoModerato } from 'viem/chains'
import WebSocket from 'ws'

import { setClockAhead } from './clock.mjs'
import { openWallet } from './wallet_file.mjs'

const { values: options } = parseArgs({
  options: {
    rpc: { type: 'string' },
    http: { type: 'string' },
    'private-key': { type: 'string' },
    protocol: { type: 'string', default: 'v2' },
    'chain-id': { type: 'string', default: '42431' },
    'max-deposit': { type: 'string', default: '1' },
    requests: { type: 'string', default: '3' },
    tokens: { type: 'string', default: '8' },
    messages: { type: 'string', default: '0' }, // tokens over a WebSocket
    'clock-ahead': { type: 'string', default: '0' },
    route: { type: 'string', default: '/req' },
    wallet: { type: 'string' },
  },
})

setClockAhead(Number(options['clock-ahead']))

const account = privateKeyToAccount(options['private-key'])
const chain = defineChain({
  ...tempoModerato,
  id: Number(options['chain-id']),
  rpcUrls: { default: { http: [options.rpc] } },
})
const client = createClient({
  account,
  chain,
  pollingInterval: 50,
  transport: http(options.rpc, { retryCount: 0 }),
})
const createManager = options.protocol === 'v1' ? sessionLegacyManager : sessionManager
const channelStore =
  options.wallet && (await openWallet({
    path: options.wallet,
    namespace: options.http,
    requestUrl: options.http + options.route,
  }))
const manager = createManager({
  account,
  client,
  maxDeposit: options['max-deposit'],
  webSocket: WebSocket,
  ...(channelStore && { channelStore }),
})

const statuses = []
let channelId
for (let index = 0; index < Number(options.requests); index++) {
  const response = await manager.fetch(options.http + options.route)
  statuses.push(response.status)
  await response.text()
  channelId = response.channelId
}

const tokens = []
if (Number(options.tokens) > 0) {
  const stream = await manager.sse(`${options.http}/sse?n=${options.tokens}`)
  for await (const token of stream) tokens.push(token)
  channelId = manager.channelId
}

const messages = []
const wanted = Number(options.messages)
if (wanted > 0) {
  const socket = await manager.ws(`${options.http.replace('http', 'ws')}/ws?n=${wanted}`)
  await new Promise((resolve, reject) => {
    socket.addEventListener('message', (event) => messages.push(event.data) === wanted && resolve())
    socket.addEventListener('error', reject)
    socket.addEventListener('close', resolve)
  })
  channelId = manager.channelId
}

const cumulative = String(manager.cumulative)
const receipt = channelStore ? undefined : await manager.close()
const result = { payer: account.address, channelId, statuses, tokens, messages, cumulative, close: receipt ?? null }
console.log(JSON.stringify(result))
process.exit(0) // a WebSocket may still be open

// mppx's own client against the testbed: shows that chain, contract and server work, with nothing of ours in between.
//
//   node smoke_client.mjs --rpc URL --http URL --private-key 0x… [--requests 3] [--tokens 8] [--route /req]
//
// Opens a channel, pays for requests and a stream, closes, and prints one JSON line of what happened.

import { parseArgs } from 'node:util'

import { tempo } from 'mppx/client'
import { createClient, defineChain, http } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { tempoModerato } from 'viem/chains'

const { values: options } = parseArgs({
  options: {
    rpc: { type: 'string' },
    http: { type: 'string' },
    'private-key': { type: 'string' },
    'chain-id': { type: 'string', default: '42431' },
    'max-deposit': { type: 'string', default: '1' },
    requests: { type: 'string', default: '3' },
    tokens: { type: 'string', default: '8' },
    route: { type: 'string', default: '/req' },
  },
})

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
const manager = tempo.session.manager({ account, client, maxDeposit: options['max-deposit'] })

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

const cumulative = String(manager.cumulative)
const receipt = await manager.close()
console.log(JSON.stringify({ payer: account.address, channelId, statuses, tokens, cumulative, close: receipt ?? null }))

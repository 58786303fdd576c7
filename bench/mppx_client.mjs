// mppx's own client, measured in its own process. Given to `node --input-type=module --eval`, where mppx is installed:
// a module that is evaluated resolves its imports from the working directory.
//
//   node --input-type=module --eval "$(cat mppx_client.mjs)" RPC HTTP PRIVATE-KEY
//
// Each line on standard input asks for paid calls, one after the other: `{"requests": 100}`. It is answered by a line:
// what they took by the clock, and of this process's CPU. Its channels are in memory.

import readline from 'node:readline'

import { sessionManager } from 'mppx/client'
import { createClient, defineChain, http } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { tempoModerato } from 'viem/chains'

const [rpc, base, key] = process.argv.slice(1)
const account = privateKeyToAccount(key)
const chain = defineChain({ ...tempoModerato, id: 42431, rpcUrls: { default: { http: [rpc] } } })
const client = createClient({ account, chain, pollingInterval: 50, transport: http(rpc, { retryCount: 0 }) })
const manager = sessionManager({ account, client, maxDeposit: '1000' })

async function call() {
  const response = await manager.fetch(`${base}/req`)
  const body = await response.json()
  if (response.status !== 200 || body.ok !== true) throw new Error(`${response.status}: ${JSON.stringify(body)}`)
}

console.log('{}')
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { requests } = JSON.parse(line)
  const began = process.hrtime.bigint()
  const cpu = process.cpuUsage()
  for (let index = 0; index < requests; index++) await call()
  const used = process.cpuUsage(cpu)
  const seconds = Number(process.hrtime.bigint() - began) / 1e9
  console.log(JSON.stringify({ seconds, cpu: (used.user + used.system) / 1e6, cumulative: String(manager.cumulative) }))
}
process.exit(0)

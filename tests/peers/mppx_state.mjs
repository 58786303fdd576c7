// Writes to disk what mppx keeps of payer channels, with mppx's own code. Usage:
//   node mppx_state.mjs < jobs.json
// A job: { kind: 'sqlite' | 'sessions' | 'kv', target: an absolute path, rows }. A row: { namespace, requestUrl, entry }
// for sqlite, an `upsert` for sessions, an entry for kv; amounts are strings.
import { readFileSync, writeFileSync } from 'node:fs'

import { openWallet } from './wallet_file.mjs'

const channel = (entry) => ({
  ...entry,
  cumulativeAmount: BigInt(entry.cumulativeAmount),
  deposit: BigInt(entry.deposit),
})

async function write({ kind, target, rows }) {
  if (kind === 'sqlite') {
    for (const { namespace, requestUrl, entry } of rows) {
      const store = await openWallet({ path: target, namespace, requestUrl })
      store.set(channel(entry))
      store.close()
    }
  } else if (kind === 'sessions') {
    const { createSessionRegistry } = await import('./node_modules/mppx/dist/cli/sessions/store.js')
    const registry = createSessionRegistry({ stateRoot: target })
    for (const row of rows)
      await registry.upsert({ ...row, channel: channel(row.channel), spent: BigInt(row.spent) })
  } else if (kind === 'kv') {
    const { createJsonChannelStore } = await import(
      './node_modules/mppx/dist/tempo/session/client/ChannelStore.js'
    )
    const values = {}
    const kv = { get: (key) => values[key], set: (key, value) => void (values[key] = value), delete: () => {} }
    for (const entry of rows) await createJsonChannelStore(kv).set(channel(entry))
    writeFileSync(target, JSON.stringify(values))
  } else throw new Error(`unknown kind ${kind}`)
}

for (const job of JSON.parse(readFileSync(0, 'utf8'))) await write(job)

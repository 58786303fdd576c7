// mppx's channel store in an SQLite file. Import this before anything of mppx/client/node.
import { builtinModules, register } from 'node:module'

if (!builtinModules.includes('sqlite') && !builtinModules.includes('node:sqlite')) {
  // Node before 22.5 has no SQLite: the statements of mppx go to Python's instead.
  const shim = new URL('./sqlite_over_python.mjs', import.meta.url).href
  const hooks = `export const resolve = (specifier, context, next) => specifier === 'node:sqlite'
    ? { url: ${JSON.stringify(shim)}, shortCircuit: true } : next(specifier, context)`
  register(`data:text/javascript,${encodeURIComponent(hooks)}`)
}

export async function openWallet(options) {
  const { createSqliteChannelStore } = await import('mppx/client/node')
  return createSqliteChannelStore(options)
}

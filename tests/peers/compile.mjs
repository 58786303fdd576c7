// Compiles contracts/*.sol with npm's solc (WebAssembly: works offline) into .build/, once per state of the sources.
//
//   node compile.mjs TempoChannelReserve
//
// prints one JSON line: {"name", "artifact", "cached"}. The artefact is {"abi", "deployedBytecode", "bytecode"}.

import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const require = createRequire(import.meta.url)
const here = dirname(fileURLToPath(import.meta.url))
const buildFolder = join(here, '.build')

const settings = {
  // Cancun has transient storage, which the channel contract needs, and is what the local chain runs at least.
  evmVersion: 'cancun',
  optimizer: { enabled: true, runs: 200 },
  viaIR: true,
  metadata: { bytecodeHash: 'none' },
  outputSelection: { '*': { '*': ['abi', 'evm.bytecode.object', 'evm.deployedBytecode.object'] } },
}

function compile(name) {
  const file = `${name}.sol`
  const source = readFileSync(join(here, 'contracts', file), 'utf8')
  const compilerVersion = require('solc/package.json').version
  const key = createHash('sha256')
    .update(JSON.stringify([compilerVersion, settings, source]))
    .digest('hex')
    .slice(0, 16)
  const artifact = join(buildFolder, `${name}-${key}.json`)
  if (existsSync(artifact)) return { name, artifact, cached: true }

  const solc = require('solc') // 8 MB of WebAssembly: only load it when there is something to compile
  const input = { language: 'Solidity', sources: { [file]: { content: source } }, settings }
  const output = JSON.parse(solc.compile(JSON.stringify(input)))
  // The one warning that solc has for these sources (transient storage needs care) is not worth a line per run.
  const errors = (output.errors ?? []).filter((problem) => problem.severity === 'error')
  for (const error of errors) console.error(error.formattedMessage)
  if (errors.length > 0) process.exit(1)

  const contract = output.contracts[file][name]
  mkdirSync(buildFolder, { recursive: true })
  // Write aside and rename: another process may be compiling the same source right now.
  const draft = `${artifact}.${process.pid}`
  const content = {
    abi: contract.abi,
    bytecode: `0x${contract.evm.bytecode.object}`,
    deployedBytecode: `0x${contract.evm.deployedBytecode.object}`,
  }
  writeFileSync(draft, JSON.stringify(content))
  renameSync(draft, artifact)
  return { name, artifact, cached: false }
}

for (const name of process.argv.slice(2)) console.log(JSON.stringify(compile(name)))

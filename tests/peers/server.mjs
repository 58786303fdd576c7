// An unmodified mppx server that sells things over HTTP and HTTPS, and an admin listener that shows its books.
//
//   node server.mjs --rpc http://127.0.0.1:8545/server [--tls-key FILE --tls-cert FILE] [--currency 0x…] …
//
// Prints one JSON line with its addresses when it is ready, and ends when standard input ends (so that it never
// outlives the process that started it). Amounts in options and in query strings are in units of the token
// ("0.01"); amounts in the admin listener's answers are in base units.
//
// `--protocol v1` sells over the older contract escrow, with mppx 0.7's `tempo.sessionLegacy`; everything else stays.
//
// Everything that takes money does so through mppx. What this file adds is an application behind it, a counter in
// front of it, and knobs for things that an application may do (fail, delay, hang up).

import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import http from 'node:http'
import https from 'node:https'
import path from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setTimeout } from 'node:timers/promises'
import { parseArgs } from 'node:util'

import { Credential } from 'mppx'
import { createClient, defineChain, http as httpTransport } from 'viem'
import { mnemonicToAccount } from 'viem/accounts'
import { tempoModerato } from 'viem/chains'
import { WebSocketServer } from 'ws'

import { setClockAhead } from './clock.mjs'

const { values: options } = parseArgs({
  options: {
    rpc: { type: 'string' },
    protocol: { type: 'string', default: 'v2' },
    'chain-id': { type: 'string', default: '42431' },
    currency: { type: 'string', default: '0x20c0000000000000000000000000000000000000' },
    'payee-index': { type: 'string', default: '1' },
    'fee-payer-index': { type: 'string', default: '2' },
    amount: { type: 'string', default: '0.01' },
    'suggested-deposit': { type: 'string', default: '0.05' },
    'expires-seconds': { type: 'string', default: '300' },
    'channel-state-ttl-ms': { type: 'string', default: '5000' },
    realm: { type: 'string' }, // default: the host name of the request, as mppx has it
    files: { type: 'string' }, // a folder that is sold, file by file, below /files/
    'tls-key': { type: 'string' },
    'tls-cert': { type: 'string' },
    'http-port': { type: 'string', default: '0' },
    'clock-ahead': { type: 'string', default: '0' }, // seconds, see clock.mjs
    'https-port': { type: 'string', default: '0' },
    'admin-port': { type: 'string', default: '0' },
  },
})

setClockAhead(Number(options['clock-ahead']))

// The two majors of the session protocol live in two versions of mppx.
const isV1 = options.protocol === 'v1'
const { Mppx, Request: MppxRequest, Store, tempo } = await import(isV1 ? 'mppx-v1/server' : 'mppx/server')
const sessionMethod = isV1 ? tempo.sessionLegacy : tempo.session

const DEV_MNEMONIC = 'test test test test test test test test test test test junk'
const BEARER_TOKEN = 'secret'

const payee = mnemonicToAccount(DEV_MNEMONIC, { addressIndex: Number(options['payee-index']) })
const feePayer = mnemonicToAccount(DEV_MNEMONIC, { addressIndex: Number(options['fee-payer-index']) })
const chain = defineChain({
  ...tempoModerato,
  id: Number(options['chain-id']),
  rpcUrls: { default: { http: [options.rpc] } },
})
const client = createClient({
  account: payee,
  chain,
  pollingInterval: 50,
  transport: httpTransport(options.rpc, { retryCount: 0 }),
})

// What the admin listener may change at run time.
const terms = {
  amount: options.amount,
  suggestedDeposit: options['suggested-deposit'],
  expiresSeconds: Number(options['expires-seconds']),
  minVoucherDelta: undefined, // in units of the token
}

// ------------------------------------------------------------------ mppx

// One store for all routes: one seller keeps one account per channel.
const store = Store.memory()
let generation = 0
let sellers = createSellers()

function createSellers() {
  const common = {
    account: payee,
    currency: options.currency,
    recipient: payee.address,
    getClient: () => client,
    store,
    channelStateTtl: Number(options['channel-state-ttl-ms']),
  }
  const shared = {
    ...(options.realm ? { realm: options.realm } : {}),
    secretKey: `only-for-tests-secret-of-at-least-32-characters-${generation}`,
  }
  const session = (extra = {}) => sessionMethod({ ...common, ...extra })
  const charge = tempo.charge({
    currency: common.currency,
    recipient: common.recipient,
    getClient: common.getClient,
    store,
  })
  return {
    plain: Mppx.create({ ...shared, methods: [session()] }),
    streaming: Mppx.create({ ...shared, methods: [session({ sse: true })] }),
    sponsored: Mppx.create({ ...shared, methods: [session({ feePayer })] }),
    charge: Mppx.create({ ...shared, methods: [charge] }),
    both: Mppx.create({ ...shared, methods: [session(), charge] }),
    withAuth: Mppx.create({ ...shared, requiresAuth: true, methods: [session()] }),
  }
}

/** The terms of a session route; a query string may change each of them. */
function sessionTerms(query, overrides = {}) {
  return {
    amount: query.get('amount') ?? terms.amount,
    suggestedDeposit: query.get('deposit') ?? terms.suggestedDeposit,
    unitType: 'request',
    expires: expiry(query),
    ...(terms.minVoucherDelta ? { minVoucherDelta: terms.minVoucherDelta } : {}),
    ...overrides,
  }
}

function expiry(query) {
  const seconds = Number(query.get('expires') ?? terms.expiresSeconds)
  return new Date(Date.now() + seconds * 1000).toISOString()
}

// ------------------------------------------------------------------ the application

/** Deterministic bytes: byte i is (31 i + floor(i / 256)) mod 256. */
function blobBytes(start, length) {
  const bytes = new Uint8Array(length)
  for (let index = 0; index < length; index++) {
    const position = start + index
    bytes[index] = (position * 31 + (position >> 8)) & 0xff
  }
  return bytes
}

function blobStream(total, chunkSize = 16_384) {
  let sent = 0
  return new ReadableStream({
    pull(controller) {
      if (sent >= total) return controller.close()
      const size = Math.min(chunkSize, total - sent)
      controller.enqueue(blobBytes(sent, size))
      sent += size
    },
  })
}

async function describeRequest(request) {
  const body = Buffer.from(await request.arrayBuffer())
  return {
    ok: true,
    method: request.method,
    bodyLength: body.length,
    bodySha256: createHash('sha256').update(body).digest('hex'),
  }
}

/** Waits, but not for a client that went away. */
async function sleep(milliseconds, signal) {
  if (milliseconds > 0) await setTimeout(milliseconds, undefined, { signal })
}

/** Runs the payment step of a route, then its application, and attaches the receipt. */
async function sell(seller, routeTerms, request, application) {
  const result = await seller(routeTerms)(request)
  if (result.status === 402) return result.challenge
  try {
    // mppx answers management requests (HEAD vouchers, top-ups, closes) by itself: then there is nothing to serve.
    return result.withReceipt()
  } catch (error) {
    if (error.name !== 'MissingReceiptResponseError') throw error
  }
  return result.withReceipt(await application())
}

/** Tokens, `delay` ms apart, each of them charged for. */
function meteredTokens(count, delay, signal, wrap = (token) => token) {
  return async function* (stream) {
    for (let index = 0; index < count; index++) {
      if (index > 0) await sleep(delay, signal)
      await stream.charge()
      yield wrap(`tok${index}`, index)
    }
  }
}

async function streamTokens(request, query, generate) {
  const routeTerms = sessionTerms(query, { unitType: 'token' })
  const result = await sellers.streaming.session(routeTerms)(request)
  if (result.status === 402) return result.challenge
  // A voucher for a running stream comes on its own connection to the same URL, without a body. mppx answers HEAD
  // and queryless POST vouchers itself; with a query, a bodyless POST would start a second stream.
  const isContent = request.method === 'GET' || request.body !== null
  if (!isContent) return result.withReceipt(new Response(null, { status: 204 }))
  return result.withReceipt(generate)
}

async function chatCompletion(request, query) {
  const isJson = (request.headers.get('content-type') ?? '').includes('json')
  const body = isJson && request.body ? await request.clone().json() : {}
  const count = body.max_tokens ?? 8
  const base = { id: 'chatcmpl-test', created: 0, model: body.model ?? 'test-model' }
  if (body.stream) {
    const wrap = (content, index) =>
      JSON.stringify({
        ...base,
        object: 'chat.completion.chunk',
        choices: [{ index: 0, delta: { role: 'assistant', content }, finish_reason: index + 1 < count ? null : 'stop' }],
      })
    const tokens = meteredTokens(count, Number(query.get('delay') ?? 0), request.signal, wrap)
    return streamTokens(request, query, async function* (stream) {
      yield* tokens(stream)
      yield '[DONE]'
    })
  }
  return sell(sellers.plain.session, sessionTerms(query), request, () =>
    Response.json({
      ...base,
      object: 'chat.completion',
      choices: [{ index: 0, message: { role: 'assistant', content: 'Paid for.' }, finish_reason: 'stop' }],
      usage: { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 },
    }),
  )
}

const routes = {
  '/free': async (request) => Response.json({ ...(await describeRequest(request)), free: true }),

  // One request, one fixed price. `?delay=ms` answers late, `?status=` with that status, `?hangup=1` not at all.
  '/req': (request, query) =>
    sell(sellers.plain.session, sessionTerms(query), request, async () => {
      await sleep(Number(query.get('delay') ?? 0), request.signal)
      return Response.json(await describeRequest(request), { status: Number(query.get('status') ?? 200) })
    }),

  '/price': (request, query) =>
    sell(sellers.plain.session, sessionTerms(query), request, async () =>
      Response.json({ ...(await describeRequest(request)), amount: query.get('amount') ?? terms.amount }),
    ),

  // `n` deterministic bytes in chunks; with a Content-Length unless `?chunked=1`.
  '/blob': (request, query) =>
    sell(sellers.plain.session, sessionTerms(query), request, () => {
      const length = Number(query.get('n') ?? 65_536)
      const headers = { 'content-type': 'application/octet-stream' }
      if (!query.has('chunked')) headers['content-length'] = String(length)
      return new Response(blobStream(length), { headers })
    }),

  '/echo': (request, query) =>
    sell(sellers.plain.session, sessionTerms(query), request, async () => {
      const type = request.headers.get('content-type') ?? 'application/octet-stream'
      return new Response(await request.arrayBuffer(), { headers: { 'content-type': type } })
    }),

  // `n` tokens, each charged for, `delay` ms apart.
  '/sse': (request, query) =>
    streamTokens(
      request,
      query,
      meteredTokens(Number(query.get('n') ?? 8), Number(query.get('delay') ?? 0), request.signal),
    ),

  // What a client of the WebSocket at the same address asks first. An upgrade gets no 402: see `upgrade` below.
  '/ws': (request, query) =>
    sell(sellers.plain.session, sessionTerms(query, { unitType: 'token' }), request, () =>
      Response.json({ error: 'this is a WebSocket' }, { status: 426 }),
    ),

  // The subset of OpenAI's API that its SDK needs.
  '/v1/chat/completions': chatCompletion,

  // Wants the client's own bearer token, so the payment has to travel in Payment-Authorization.
  '/auth': (request, query) => {
    if (request.headers.get('authorization') !== `Bearer ${BEARER_TOKEN}`) {
      return Response.json({ error: 'unauthorized' }, { status: 401, headers: { 'www-authenticate': 'Bearer' } })
    }
    return sell(sellers.withAuth.session, sessionTerms(query), request, async () =>
      Response.json({ ...(await describeRequest(request)), user: 'bearer' }),
    )
  },

  // As /req, with the seller paying for the gas.
  '/reqfp': (request, query) =>
    sell(sellers.sponsored.session, sessionTerms(query), request, async () =>
      Response.json(await describeRequest(request)),
    ),

  '/charge': (request, query) => {
    const chargeTerms = { amount: query.get('amount') ?? '0.02', expires: expiry(query) }
    if (query.has('modes')) chargeTerms.supportedModes = query.get('modes').split(',')
    if (query.has('sponsored')) chargeTerms.feePayer = feePayer
    return sell(sellers.charge.charge, chargeTerms, request, async () =>
      Response.json(await describeRequest(request)),
    )
  },

  // A choice: session or charge. `?split=1` sends one header field per challenge instead of a joined one.
  '/multi': (request, query) => {
    const offer = () =>
      sellers.both.compose(
        ['tempo/session', sessionTerms(query)],
        ['tempo/charge', { amount: query.get('amount') ?? terms.amount, expires: expiry(query) }],
      )
    return sell(offer, undefined, request, async () => Response.json(await describeRequest(request)))
  },

  // Paid for, and then the application has nothing to give.
  '/status/404paid': (request, query) =>
    sell(sellers.plain.session, sessionTerms(query), request, () =>
      Response.json({ error: 'no such thing' }, { status: 404 }),
    ),
}

const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.svg': 'image/svg+xml' }

/** Each file costs what a request costs; one that is not there costs nothing. */
async function sellFile(request, query) {
  const root = path.resolve(options.files)
  const wanted = path.resolve(root, decodeURIComponent(new URL(request.url).pathname).replace('/files/', ''))
  const content = wanted.startsWith(root + path.sep) ? await readFile(wanted).catch(() => undefined) : undefined
  if (content === undefined) return new Response('not found\n', { status: 404 })
  return sell(sellers.plain.session, sessionTerms(query), request, () => {
    const type = TYPES[path.extname(wanted)] ?? 'application/octet-stream'
    return new Response(content, { headers: { 'content-type': type } })
  })
}

function handlerOf(pathname) {
  if (options.files && pathname.startsWith('/files/')) return ['/files/', sellFile]
  return routes[pathname] ? [pathname, routes[pathname]] : ['(unknown)', undefined]
}

// ------------------------------------------------------------------ counting

const ACTIONS = ['open', 'voucher', 'topUp', 'close']
const LOG_LENGTH = 2000

let counters = {}
let vouchers = []
let requestLog = []
const knownChannels = new Set()

function counterOf(route) {
  counters[route] ??= {
    total: 0,
    withCredential: 0,
    actions: Object.fromEntries(ACTIONS.map((action) => [action, 0])),
    charges: 0,
    sent402: 0,
    statuses: {},
  }
  return counters[route]
}

/** The payment credential of a request, or undefined. Only looked at here: judging it is mppx's business. */
function readCredential(request) {
  for (const name of ['payment-authorization', 'authorization']) {
    const header = request.headers.get(name)
    if (!header || !/^payment /i.test(header)) continue
    try {
      return Credential.deserialize(header)
    } catch {
      return undefined
    }
  }
  return undefined
}

function countRequest(route, request) {
  const counter = counterOf(route)
  const credential = readCredential(request)
  const payload = credential?.payload
  counter.total += 1
  if (credential) counter.withCredential += 1
  if (ACTIONS.includes(payload?.action)) {
    counter.actions[payload.action] += 1
    knownChannels.add(payload.channelId.toLowerCase())
    if (payload.cumulativeAmount !== undefined) {
      const { action, channelId, cumulativeAmount } = payload
      vouchers.push({ route, action, channelId: channelId.toLowerCase(), cumulative: cumulativeAmount })
    }
  } else if (credential) {
    counter.charges += 1
  }
  const entry = {
    time: Date.now(),
    route,
    method: request.method,
    url: request.url,
    headers: Object.fromEntries(request.headers),
    action: payload?.action ?? null,
    status: null,
  }
  requestLog.push(entry)
  if (requestLog.length > LOG_LENGTH) requestLog.shift()
  return { counter, entry }
}

// ------------------------------------------------------------------ HTTP

/** Splits a joined WWW-Authenticate header where a new Payment challenge starts. */
function splitChallenges(value) {
  return value.split(/,\s*(?=Payment )/)
}

async function sendResponse(outgoing, response, { split = false } = {}) {
  outgoing.statusCode = response.status
  for (const [name, value] of response.headers) {
    const splitThis = split && name === 'www-authenticate'
    outgoing.setHeader(name, splitThis ? splitChallenges(value) : value)
  }
  if (response.body === null) return void outgoing.end()
  outgoing.flushHeaders() // a stream that waits for a voucher must have started
  await pipeline(Readable.fromWeb(response.body), outgoing)
}

const cutAlready = new Set()

/**
 * What happens to this payment on the line: `?cut=before` hangs up before it is looked at, `after` when it has been
 * charged for; `502-before` and `502-after` answer as a gateway would. Once per address: the next one is served.
 */
function cutOf(url) {
  const cut = url.searchParams.get('cut')
  if (!cut || cutAlready.has(url.href)) return null
  cutAlready.add(url.href)
  return cut
}

const badGateway = () => new Response('bad gateway\n', { status: 502 })

async function serve(incoming, outgoing) {
  let entry
  try {
    const request = MppxRequest.fromNodeListener(incoming, outgoing)
    const url = new URL(request.url)
    const [route, handler] = handlerOf(url.pathname)
    const counted = countRequest(route, request)
    entry = counted.entry
    const cut = entry.action ? cutOf(url) : null
    if (cut === 'before') return void incoming.socket.destroy()
    if (cut === '502-before') return void sendResponse(outgoing, badGateway())
    const response = handler
      ? await handler(request, url.searchParams)
      : new Response('not found\n', { status: 404 })
    entry.status = response.status
    counted.counter.statuses[response.status] = (counted.counter.statuses[response.status] ?? 0) + 1
    if (response.status === 402) counted.counter.sent402 += 1
    if (url.searchParams.has('hangup') && response.status !== 402) return void incoming.socket.destroy()
    if (cut === 'after') return void incoming.socket.destroy()
    if (cut === '502-after') return void sendResponse(outgoing, badGateway())
    await sendResponse(outgoing, response, { split: url.searchParams.has('split') })
  } catch (error) {
    if (error?.code === 'ERR_STREAM_PREMATURE_CLOSE' || error?.name === 'AbortError') return
    console.error(error)
    if (entry) entry.error = String(error)
    if (outgoing.headersSent) return void incoming.socket.destroy()
    outgoing.statusCode = 500
    outgoing.end(`${error}\n`)
  }
}

// ------------------------------------------------------------------ WebSocket

const webSockets = new WebSocketServer({ noServer: true })

/** `/ws?n=&delay=`: metered tokens, paid for by frames. mppx lets everyone in, and then waits for the first one. */
function upgrade(incoming, socket, head) {
  const url = new URL(incoming.url, `http://${incoming.headers.host}`)
  if (url.pathname !== '/ws') return void socket.destroy()
  const query = url.searchParams
  const counter = counterOf('/ws')
  counter.upgrades = (counter.upgrades ?? 0) + 1
  webSockets.handleUpgrade(incoming, socket, head, async (webSocket) => {
    const seller = sellers.plain.session
    const gone = new AbortController()
    webSocket.on('close', () => gone.abort())
    try {
      await seller.serveWebSocket({
        socket: webSocket,
        // Without the query: mppx sees each frame as a bodyless POST to this URL, and charges for one with a query.
        url: url.origin + url.pathname,
        generate: meteredTokens(Number(query.get('n') ?? 8), Number(query.get('delay') ?? 0), gone.signal),
        route: (request) => {
          countRequest('/ws', request)
          return seller(sessionTerms(query, { unitType: 'token' }))(request)
        },
      })
    } catch (error) {
      if (error?.name !== 'AbortError') console.error(error)
    }
  })
}

// ------------------------------------------------------------------ admin

/** What mppx's `settle` wants. (0.11 would take the store itself; 0.7 keeps the function for that to itself.) */
const channelStore = {
  getChannel: (channelId) => store.get(channelId),
  updateChannel: (channelId, change) =>
    store.update(channelId, (current) => {
      const next = change(current)
      return next ? { op: 'set', value: next, result: next } : { op: 'noop', result: null }
    }),
}

async function channelBook(channelId) {
  const state = await store.get(channelId)
  if (!state) return null
  return {
    channelId,
    deposit: String(state.deposit),
    spent: String(state.spent),
    units: state.units,
    accepted: String(state.highestVoucherAmount),
    settled: String(state.settledOnChain),
    closeRequestedAt: Number(state.closeRequestedAt ?? 0),
    finalized: state.finalized,
    payer: state.payer,
    payee: state.payee,
    token: state.token,
    descriptor: state.descriptor ?? null, // v2 only
  }
}

const admin = {
  '/stats': () => ({ routes: counters, vouchers }),

  '/log': () => requestLog,

  '/reset': () => {
    counters = {}
    vouchers = []
    requestLog = []
    return { ok: true }
  },

  '/channels': async () => {
    const books = await Promise.all([...knownChannels].map(channelBook))
    return books.filter((book) => book !== null)
  },

  // Cashes the highest accepted voucher on the chain.
  '/settle': async (query) => {
    const settle = isV1 ? tempo.sessionLegacy.settle : tempo.settle
    return { transaction: await settle(channelStore, client, query.get('channelId'), { account: payee }) }
  },

  // The seller loses its memory of a channel (or of all): vouchers for it are then answered with 410.
  '/forget': async (query) => {
    const wanted = query.has('channelId') ? [query.get('channelId').toLowerCase()] : [...knownChannels]
    for (const channelId of wanted) await store.delete(channelId)
    return { forgotten: wanted }
  },

  // A new secret: every challenge issued before is refused from now on.
  '/rotate': () => {
    generation += 1
    sellers = createSellers()
    return { generation }
  },

  // `?ahead=seconds`: moves the seller's clock along with the chain's.
  '/clock': (query) => {
    setClockAhead(Number(query.get('ahead')))
    return { now: new Date().toISOString() }
  },

  // `?amount=…&suggestedDeposit=…&expiresSeconds=…&minVoucherDelta=…`: new terms for all routes.
  '/terms': (query) => {
    for (const name of ['amount', 'suggestedDeposit']) {
      if (query.has(name)) terms[name] = query.get(name)
    }
    if (query.has('expiresSeconds')) terms.expiresSeconds = Number(query.get('expiresSeconds'))
    if (query.has('minVoucherDelta')) terms.minVoucherDelta = query.get('minVoucherDelta') || undefined
    return terms
  },
}

async function serveAdmin(incoming, outgoing) {
  const url = new URL(incoming.url, 'http://admin')
  outgoing.setHeader('content-type', 'application/json')
  try {
    const action = admin[url.pathname]
    if (!action) outgoing.statusCode = 404
    const answer = action ? await action(url.searchParams) : { error: 'no such action' }
    outgoing.end(JSON.stringify(answer))
  } catch (error) {
    outgoing.statusCode = 500
    outgoing.end(JSON.stringify({ error: String(error) }))
  }
}

// ------------------------------------------------------------------ start

function listen(server, port) {
  if (server !== adminServer) server.on('upgrade', upgrade)
  server.keepAliveTimeout = 60_000
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(Number(port), '127.0.0.1', 1024, () => resolve(server.address().port))
  })
}

const adminServer = http.createServer(serveAdmin)
const ready = {
  payee: payee.address,
  feePayer: feePayer.address,
  currency: options.currency,
  http: `http://127.0.0.1:${await listen(http.createServer(serve), options['http-port'])}`,
  admin: `http://127.0.0.1:${await listen(adminServer, options['admin-port'])}`,
}
if (options['tls-key'] && options['tls-cert']) {
  const tls = { key: readFileSync(options['tls-key']), cert: readFileSync(options['tls-cert']) }
  const port = await listen(https.createServer(tls, serve), options['https-port'])
  ready.https = `https://localhost:${port}`
}
console.log(JSON.stringify(ready))

process.stdin.resume()
process.stdin.on('end', () => process.exit(0))
process.stdin.on('error', () => process.exit(0))

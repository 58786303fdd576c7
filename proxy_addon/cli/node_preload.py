"""A preload for Node releases whose `fetch` knows no proxy variables (before 22.21 and 24).

It routes `fetch` through CONNECT, with the HTTP client that Node itself carries; no package is needed. A
program that sets a dispatcher of its own keeps it. Loaded with NODE_OPTIONS=--require.
"""

from __future__ import annotations

from typing import Final

SOURCE: Final = r"""'use strict'
;(() => {
  const known = process.allowedNodeEnvironmentFlags.has('--use-env-proxy')
  const proxy = process.env.https_proxy
  if (known || !proxy || typeof globalThis.fetch !== 'function') return

  const key = Symbol.for('undici.globalDispatcher.1')
  const own = Object.getOwnPropertyDescriptor(globalThis, 'fetch')
  const original = globalThis.fetch

  // The client is loaded by the first call; a program that never calls fetch pays nothing for this.
  Object.defineProperty(globalThis, 'fetch', {
    configurable: true,
    enumerable: own.enumerable,
    writable: true,
    value: function fetch(...args) {
      install()
      return original.apply(this, args)
    },
  })

  let installed = false
  function install() {
    if (installed) return
    installed = true
    if (globalThis[key] !== undefined) return // the program has its own
    void globalThis.Headers // loads Node's client, which then sets its dispatcher
    const direct = globalThis[key]
    if (direct === undefined || typeof direct.dispatch !== 'function') return
    const exempt = exemptions(process.env.no_proxy || process.env.NO_PROXY || '')
    const Agent = direct.constructor
    class Proxied extends Agent {
      dispatch(options, handler) {
        const { hostname, port, protocol } = new URL(options.origin)
        if (exempt(hostname, port || (protocol === 'https:' ? '443' : '80'))) {
          return direct.dispatch(options, handler)
        }
        return super.dispatch(options, handler)
      }
    }
    Object.defineProperty(globalThis, key, {
      configurable: false,
      enumerable: false,
      writable: true,
      value: new Proxied({ connect: tunnel }),
    })
  }

  function tunnel(options, callback) {
    const http = require('node:http')
    const { hostname, port } = new URL(proxy)
    const target = `${options.hostname}:${options.port || (options.protocol === 'https:' ? 443 : 80)}`
    const request = http.request({
      agent: false,
      host: hostname.replace(/^\[|\]$/g, ''),
      port,
      method: 'CONNECT',
      path: target,
      headers: { host: target },
    })
    request.once('error', callback)
    request.once('connect', (response, socket) => {
      request.off('error', callback)
      if (response.statusCode !== 200) {
        socket.destroy()
        callback(new Error(`the proxy answered ${response.statusCode} to CONNECT ${target}`))
        return
      }
      if (options.protocol !== 'https:') {
        callback(null, socket)
        return
      }
      const name = options.servername || options.hostname
      const secure = require('node:tls').connect({
        socket,
        servername: require('node:net').isIP(name.replace(/^\[|\]$/g, '')) ? '' : name,
        host: options.hostname,
        ALPNProtocols: ['http/1.1'],
      })
      secure.once('error', callback)
      secure.once('secureConnect', () => {
        secure.off('error', callback)
        callback(null, secure)
      })
    })
    request.end()
  }

  function exemptions(list) {
    const names = list.toLowerCase().split(/[\s,]+/).filter(Boolean)
    return (hostname, port) => {
      const host = hostname.toLowerCase().replace(/^\[|\]$/g, '')
      return names.some((name) => {
        if (name === '*') return true
        const parts = name.match(/^(\[[^\]]*\]|[^:]*)(?::(\d+))?$/)
        if (parts && parts[2] && parts[2] !== port) return false
        const bare = (parts ? parts[1] : name).replace(/^\[|\]$/g, '').replace(/^\*?\./, '')
        return host === bare || host.endsWith('.' + bare)
      })
    }
  }
})()
"""

// What someone who knows nothing of payment writes with axios: `axios_client.mjs URL` copies a streamed answer to
// standard output as it comes. The proxy comes from the environment.

import { pipeline } from 'node:stream/promises'

import axios from 'axios'

const response = await axios.get(process.argv[2], { responseType: 'stream', timeout: 60_000 })
await pipeline(response.data, process.stdout)

// As much of node:sqlite as mppx's channel store asks for, over Python's sqlite3: for Node before 22.5.
import { spawnSync } from 'node:child_process'

const PYTHON = `
import json, sqlite3, sys
path, statements = json.load(sys.stdin)
database = sqlite3.connect(path, isolation_level=None)
database.row_factory = sqlite3.Row
if len(statements) > 1:
    database.execute("BEGIN IMMEDIATE")
for sql, parameters in statements:
    rows = [dict(row) for row in database.execute(sql, parameters)]
if len(statements) > 1:
    database.execute("COMMIT")
json.dump(rows, sys.stdout)
`

function run(path, statements) {
  const done = spawnSync(process.env.PYTHON ?? 'python3', ['-c', PYTHON], {
    input: JSON.stringify([path, statements]),
    encoding: 'utf8',
  })
  if (done.status !== 0) throw new Error(done.stderr)
  return JSON.parse(done.stdout)
}

export class DatabaseSync {
  #path
  #transaction

  constructor(path) {
    this.#path = path
  }

  exec(sql) {
    if (sql.startsWith('BEGIN')) this.#transaction = []
    else if (sql === 'ROLLBACK') this.#transaction = undefined
    else if (sql === 'COMMIT') {
      run(this.#path, this.#transaction)
      this.#transaction = undefined
    } else run(this.#path, [[sql, []]])
  }

  prepare(sql) {
    return {
      all: (...parameters) => run(this.#path, [[sql, parameters]]),
      get: (...parameters) => run(this.#path, [[sql, parameters]])[0],
      run: (...parameters) => {
        if (this.#transaction) this.#transaction.push([sql, parameters])
        else run(this.#path, [[sql, parameters]])
      },
    }
  }

  close() {}
}

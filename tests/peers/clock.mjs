// Moves this process's clock. The chain's clock can be moved forward (a forced close takes 15 minutes), and whoever
// signs a transaction by the machine's clock then signs one that has expired: everyone has to move along.

const RealDate = Date
let offset = 0 // milliseconds

globalThis.Date = class Date extends RealDate {
  constructor(...values) {
    super(...(values.length === 0 ? [RealDate.now() + offset] : values))
  }

  static now() {
    return RealDate.now() + offset
  }
}

/** Sets how far this process's clock is ahead of the machine's. */
export function setClockAhead(seconds) {
  offset = seconds * 1000
}

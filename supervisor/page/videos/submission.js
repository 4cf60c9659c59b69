// @ts-check
// A request that makes a job, and makes one only, however often it is sent: the same content has the same idempotency key until the
// server has a job of it.

/** Returns a new key. `crypto.randomUUID` exists only in pages that came over TLS or from this computer. */
const randomKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');

export class Submission {
  /** @param {() => string} [newKey] */
  constructor(newKey = randomKey) {
    this.newKey = newKey;
    this.isUnderWay = false;
    /** @type {?string} */
    this.content = null; // what was sent last and may not have arrived
    this.key = '';
  }

  /**
   * Sends a request, unless one is under way: that was a double click.
   *
   * @template Answer
   * @param {string} content  tells two requests apart
   * @param {(key: string) => Promise<Answer>} send
   * @returns {Promise<?Answer>}
   */
  async send(content, send) {
    if (this.isUnderWay) return null;
    this.isUnderWay = true;
    if (content !== this.content) {
      this.content = content;
      this.key = this.newKey();
    }
    try {
      const answer = await send(this.key);
      this.content = null;
      return answer;
    } finally {
      this.isUnderWay = false;
    }
  }
}

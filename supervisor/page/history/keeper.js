// @ts-check
// Keeps the session of this page in the history while it goes on. What the browser does not keep is told once, and disturbs nothing.

import { bytesOf, gone, isSpent, isUsable, LIMITS, newestFirst, renewed, summaryOf, surplus } from './record.js';

/**
 * @typedef {Pick<import('./database.js').HistoryDatabase, 'list' | 'change' | 'media' | 'state' | 'remove'>} Database
 * @typedef {import('./record.js').HistoryRecord} HistoryRecord
 */

export class Keeper {
  /**
   * @param {object} parts
   * @param {Database} parts.database
   * @param {() => number} parts.now  milliseconds of Unix time
   * @param {() => boolean} parts.isOn  whether the user wants a history
   * @param {(reason: 'full' | 'denied') => void} parts.failed  is called when something could not be kept, and again only after a success
   * @param {() => void} parts.changed
   * @param {{bytes: number, sessions: number}} [parts.limits]
   */
  constructor({ database, now, isOn, failed, changed, limits = LIMITS }) {
    this.database = database;
    this.now = now;
    this.isOn = isOn;
    this.failed = failed;
    this.changed = changed;
    this.limits = limits;
    this.isFailing = false;
    this.seen = '';
    /** @type {Set<string>} */
    this.deleted = new Set(); // the sessions that the user has deleted while they went on
    /** @type {Set<string>} */
    this.gone = new Set(); // the sessions that the server does not have any more
    /** @type {Promise<void>} */
    this.work = Promise.resolve();
  }

  /** Keeps what has changed of the session. @param {import('../state.js').SessionState} state */
  observe(state) {
    const summary = summaryOf(state);
    if (!summary || !this.keeps(summary.id)) return;
    const key = JSON.stringify(summary);
    if (key === this.seen) return;
    this.seen = key;
    const known = this.gone.has(summary.id) ? gone(summary) : summary;
    this.store(summary.id, (record) => renewed(record, known, this.now()));
  }

  /** Keeps the media of a finished segment. @param {string} id @param {number} idx @param {{blob: ?Blob, initBytes: number}} media */
  keepMedia(id, idx, { blob, initBytes }) {
    if (!blob?.size || !this.keeps(id)) return;
    const keep = (/** @type {HistoryRecord} */ record) => (
      bytesOf(record) + blob.size > this.limits.bytes ? undefined : { ...record, media: { ...record.media, [idx]: blob.size } });
    this.store(id, (record) => record && keep(record), { media: { id, idx, blob, initBytes } });
  }

  /** Keeps the state that a session was saved in. @param {string} id @param {import('../protocol.js').ContinuationState} state */
  keepState(id, state) {
    const bytes = JSON.stringify(state).length;
    if (isUsable(bytes) && this.keeps(id)) this.store(id, (record) => record && { ...record, stateBytes: bytes }, { state });
  }

  /** Keeps a picture of the session. @param {string} id @param {Blob} thumbnail */
  keepThumbnail(id, thumbnail) {
    if (this.keeps(id)) this.store(id, (record) => record && { ...record, thumbnail });
  }

  /** Forgets the token of a session that the server does not have any more. @param {string} id */
  forget(id) {
    this.gone.add(id);
    return this.run(() => this.database.change(id, (record) => record && gone(record)));
  }

  /** Forgets all tokens that are of no use any more. */
  forgetSpent() {
    return this.run(async () => {
      for (const record of await this.database.list()) {
        if (isSpent(record, this.now())) await this.database.change(record.id, () => gone(record));
      }
    });
  }

  /** Deletes sessions for good. Throws an error where the browser does not. @param {readonly string[]} ids */
  async remove(ids) {
    ids.forEach((id) => this.deleted.add(id));
    const removed = this.work.then(() => this.database.remove(ids));
    this.work = removed.catch(() => {});
    await removed;
  }

  /** @param {string} id */
  keeps(id) {
    return this.isOn() && !this.deleted.has(id);
  }

  /**
   * @param {string} id
   * @param {(record: HistoryRecord | undefined) => HistoryRecord | undefined} change
   * @param {Parameters<Database['change']>[2]} [beside]
   */
  store(id, change, beside) {
    return this.run(async () => {
      if (!this.keeps(id)) return;
      await this.change(id, change, beside);
      const old = surplus(await this.database.list(), this.limits);
      if (old.length) await this.database.remove(old);
    });
  }

  /**
   * Changes a record. Where the browser has no room, the oldest sessions are dropped until there is some, or none of them is left.
   *
   * @type {Database['change']}
   */
  async change(id, change, beside) {
    try {
      await this.database.change(id, change, beside);
    } catch (error) {
      if (!isFull(error) || !await this.makeRoom(id)) throw error;
      await this.change(id, change, beside);
    }
  }

  /** Drops the oldest session besides one. Returns whether there was any. @param {string} id */
  async makeRoom(id) {
    const oldest = newestFirst(await this.database.list()).findLast((record) => record.id !== id);
    if (oldest) await this.database.remove([oldest.id]);
    return oldest !== undefined;
  }

  /** Runs one operation after the other. @param {() => Promise<void>} operation */
  run(operation) {
    this.work = this.work.then(operation).then(() => {
      this.isFailing = false;
      this.changed();
    }, (error) => {
      if (!this.isFailing) this.failed(isFull(error) ? 'full' : 'denied');
      this.isFailing = true;
    });
    return this.work;
  }
}

/** @param {unknown} error */
const isFull = (error) => /** @type {any} */ (error)?.name === 'QuotaExceededError';

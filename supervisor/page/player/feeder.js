// @ts-check
// Keeps in the source buffer what is planned: it takes media from the film, appends and removes them, one operation at a time.

import { LIMITS, overlap, planBuffer } from './plan.js';
import { Detached } from './source_writer.js';

/** @typedef {import('../film.js').Place} Place */

/** A browser that takes less than this cannot hold a segment. */
const MIN_BUFFER_BYTES = 4 * 1024 * 1024;
/** Removing up to the first picture of a segment removes all of it, however the browser rounds its time. */
const BEFORE = 0.01;
/** A segment of which the browser has removed this much by itself is appended again, in seconds. */
const EVICTED = 0.2;
/** A segment that the browser could not read so many times is left out. */
const MAX_FAILURES = 2;

/** @type {readonly string[]} */
const UNFINISHED = ['denoising', 'streaming', 'restarting', 'interrupted'];

/**
 * What the buffer has of a segment.
 *
 * @typedef {object} Fed
 * @property {number} count  the parts that were appended
 * @property {number} bytes
 * @property {boolean} whole
 * @property {number} seconds  how much of a whole segment the buffer had
 *
 * @typedef {object} Player
 * @property {number} time  the viewer's position in seconds
 * @property {() => import('./plan.js').Range[]} ranges  what is buffered
 * @property {() => void} settle  is called when the buffer has changed
 * @property {(error: unknown, elsewhere: boolean) => void} recover  is called when the source has failed
 */

export class Feeder {
  /** @param {import('../film.js').Film} film @param {Player} player */
  constructor(film, player) {
    this.film = film;
    this.player = player;
    this.limits = LIMITS;
    this.reset();
  }

  /** Forgets the session. */
  reset() {
    this.limits = LIMITS;
    this.finished = false; // whether no more media will come
    /** @type {Map<number, number>} */
    this.failures = new Map(); // how often the browser could not read a segment
    /** @type {{idx: number, count: number, done: () => void}[]} */
    this.awaited = []; // what is to be told when a message was appended
    this.attach(null);
  }

  /** Begins with an empty source buffer. @param {?import('./source_writer.js').SourceWriter} writer */
  attach(writer) {
    this.writer = writer;
    /** @type {Map<number, Fed>} */
    this.fed = new Map();
    /** @type {?{idx: number, parts: Uint8Array<ArrayBuffer>[], at: number}} */
    this.feeding = null;
    /** @type {?import('./source_writer.js').SourceWriter} */
    this.running = null;
    this.again = this.full = false;
    /** @type {{from: number}[]} */
    this.cuts = [];
  }

  // --- the film has changed ---

  /** The film has another message. @param {number} idx @param {(() => void) | null} [done]  is called when it was appended */
  added(idx, done) {
    if (done) this.awaited.push({ idx, count: this.film.growing(idx)?.length ?? 0, done });
    this.wake();
  }

  /** Removes a segment's media, from `from` seconds on. @param {number} idx @param {number} from */
  cut(idx, from) {
    this.awaited = this.awaited.filter((wanted) => wanted.idx !== idx);
    this.failures.delete(idx);
    for (const other of this.fed.keys()) if (other >= idx) this.fed.delete(other);
    if (this.feeding && this.feeding.idx >= idx) this.feeding = null;
    this.cuts.push({ from });
    this.wake();
  }

  /** The same media of a segment follow once more, from its beginning. @param {number} idx */
  refill(idx) {
    if (this.fed.get(idx)?.whole) return;
    this.fed.delete(idx);
    if (this.feeding?.idx === idx) this.feeding = null;
  }

  /** Tells whether media of a segment may still come that are not in the buffer. @param {Place} place */
  isComing(place) {
    if (this.fed.get(place.idx)?.whole || this.isUnreadable(place.idx)) return false;
    return this.film.isWhole(place.idx) || this.film.isAtServer(place) || UNFINISHED.includes(place.state);
  }

  // --- feeding the buffer ---

  /** Looks at the plan again: the position, the film or the buffer has changed. */
  wake() {
    this.again = true;
    const { writer } = this;
    if (!writer || this.running === writer) return;
    this.running = writer;
    this.feed(writer).catch((error) => {
      if (writer === this.writer && !(error instanceof Detached)) this.player.recover(error, true);
    }).finally(() => { if (this.running === writer) this.running = null; });
  }

  /** What did not fit may fit now, since the viewer has moved on. */
  retry() {
    this.full = false;
    this.wake();
  }

  /** Brings the buffer to what is planned. @param {import('./source_writer.js').SourceWriter} writer */
  async feed(writer) {
    while (this.again) {
      this.again = false;
      while (writer === this.writer && await this.step(writer)) this.player.settle();
    }
    if (writer !== this.writer) return;
    this.player.settle();
    // What was to be told of messages is told also when the buffer has no room for them yet.
    const { awaited } = this;
    this.awaited = [];
    for (const { done } of awaited) done();
    const last = this.spans().at(-1);
    if (this.finished && last && !last.more && (last.buffered || !this.isComing(this.place(last.idx)))) writer.end();
  }

  /**
   * Does one thing.
   *
   * @param {import('./source_writer.js').SourceWriter} writer
   * @returns {Promise<boolean>} whether there may be more to do
   */
  async step(writer) {
    const cut = this.cuts.at(0);
    if (cut) {
      await writer.remove(cut.from, Infinity);
      this.cuts = this.cuts.filter((other) => other !== cut);
      return true;
    }
    if (this.full) return false;
    const { append, remove } = planBuffer(this.spans(), this.player.time, this.limits);
    if (remove) {
      this.fed.delete(remove.idx);
      if (this.feeding?.idx === remove.idx) this.feeding = null;
      await writer.remove(remove.start - BEFORE, remove.end - BEFORE);
      return true;
    }
    return append !== null && this.appendPart(writer, append.idx);
  }

  /**
   * Appends the next part of a segment.
   *
   * @param {import('./source_writer.js').SourceWriter} writer
   * @param {number} idx
   * @returns {Promise<boolean>} whether anything has changed
   */
  async appendPart(writer, idx) {
    const growing = this.film.growing(idx);
    const atServer = this.film.isAtServer(this.place(idx)) && this.film.isDue(idx);
    if (this.feeding?.idx !== idx || (atServer && this.feeding.parts === growing)) {
      // Every segment is appended from its init segment on, also when another one came between its parts.
      this.fed.delete(idx);
      this.feeding = null;
      const parts = growing && !atServer ? growing : await this.film.load(idx);
      if (writer === this.writer && parts) this.feeding = { idx, parts, at: 0 };
      return true; // what cannot be had is not asked for again at once
    }
    const { feeding } = this;
    if (feeding.at === feeding.parts.length) { // it has been finished meanwhile
      this.noteFed(feeding);
      return feeding.parts !== growing;
    }
    try {
      if (feeding.at === 0) await writer.begin(this.film.mimeOf(idx) ?? '');
      await writer.append(feeding.parts[feeding.at]);
    } catch (error) {
      if (writer !== this.writer) return false;
      if (/** @type {Error} */ (error).name === 'QuotaExceededError') return this.shrink();
      this.blame(idx);
      throw error;
    }
    if (this.feeding !== feeding) return true; // it was cut meanwhile
    feeding.at += 1;
    this.noteFed(feeding);
    return true;
  }

  /** @param {number} idx  the segment that the browser could not read */
  blame(idx) {
    this.failures.set(idx, (this.failures.get(idx) ?? 0) + 1);
  }

  /** Counts a failure of the source against the segment that is being appended. @returns {boolean} whether there is one */
  blameUnderWay() {
    if (!this.feeding || !this.writer?.isBusy) return false;
    this.blame(this.feeding.idx);
    return true;
  }

  /** @param {NonNullable<Feeder['feeding']>} feeding */
  noteFed({ idx, parts, at }) {
    const whole = at === parts.length && parts !== this.film.growing(idx);
    const { start, duration } = this.place(idx);
    const bytes = parts.slice(0, at).reduce((sum, part) => sum + part.byteLength, 0);
    this.fed.set(idx, { count: at, bytes, whole, seconds: overlap(this.player.ranges(), start, start + duration) });
    if (whole) this.feeding = null;
    this.awaited = this.awaited.filter((wanted) => {
      if (wanted.idx !== idx || wanted.count > at) return true;
      wanted.done();
      return false;
    });
  }

  /** The browser takes no more: its buffer is smaller than was thought. @returns {boolean} whether something can be removed */
  shrink() {
    const bytes = this.spans().reduce((sum, span) => sum + (span.buffered ? span.bytes : 0), 0);
    this.limits = { ...this.limits, bytes: Math.max(MIN_BUFFER_BYTES, Math.min(this.limits.bytes, 0.8 * bytes)) };
    this.full = planBuffer(this.spans(), this.player.time, this.limits).remove === null;
    return !this.full;
  }

  // --- what the plan sees ---

  /** @param {number} idx @returns {Place} */
  place(idx) {
    return this.film.places.find((place) => place.idx === idx) ?? { idx, state: 'streaming', start: 0, duration: 0 };
  }

  /** @returns {import('./plan.js').Span[]} */
  spans() {
    const ranges = this.player.ranges();
    return this.film.places.flatMap((place) => {
      const { idx, start, duration } = place;
      const fed = this.fed.get(idx);
      if (fed?.whole && overlap(ranges, start, start + duration) < fed.seconds - EVICTED) this.fed.delete(idx); // by the browser
      if (!this.film.growing(idx)?.length && !this.film.isWhole(idx) && !this.film.isAtServer(place) && !duration) return [];
      const bytes = this.film.media.get(idx)?.bytes || place.bytes || fed?.bytes || 0;
      const end = duration ? start + duration : Infinity;
      return [{ idx, start, end, bytes, buffered: this.fed.has(idx), more: this.hasMore(place) }];
    });
  }

  /** Tells whether media of a segment can be had now that are not in the buffer. @param {Place} place */
  hasMore(place) {
    const { idx } = place;
    const fed = this.fed.get(idx);
    if (fed?.whole || this.isUnreadable(idx)) return false;
    if (this.film.isWhole(idx) || (this.film.isAtServer(place) && this.film.isDue(idx))) return true;
    return (this.film.growing(idx)?.length ?? 0) > (this.feeding?.idx === idx ? this.feeding.at : fed?.count ?? 0);
  }

  /** @param {number} idx */
  isUnreadable(idx) {
    return (this.failures.get(idx) ?? 0) >= MAX_FAILURES;
  }
}

// @ts-check
// Notices a player that stands although it has media, and decides how it goes on. This file has no access to the DOM.

/** With less than this ahead, in seconds, the player has played everything. */
export const AT_END = 0.12;
/** While media still arrive, a player that has just stopped may buffer this much first, in seconds. */
const REBUFFER = 1.2;
/** A player that has stood for so long shows what there is, in milliseconds. */
const STOOD_LONG_MS = 2000;
const STUCK_MS = 300;
/** A seek that takes longer than this is taken to have failed, in milliseconds: a slow decoder begins at the keyframe before. */
const SEEKING_MS = 4000;
/** The clock runs, and no new picture is shown. */
const FROZEN_MS = 1500;
/** How long the player waits at a gap for media that may still be had, in milliseconds. */
const GAP_PATIENCE_MS = 8000;
/** The number of seeks before the media source is replaced. */
const MAX_NUDGES = 3;
/** Media this long after the position are buffered when a gap is only one of rounding. */
const MIN_MOVE = 0.01;

/**
 * What is seen of the player.
 *
 * @typedef {object} Sight
 * @property {number} now  in milliseconds
 * @property {number} time  the position in seconds
 * @property {?number} frames  the number of pictures shown so far; null when it tells nothing, as in a hidden tab
 * @property {boolean} playing  whether it should play
 */

/** Measures for how long neither the position nor the picture has changed. */
export class Watchdog {
  constructor() {
    this.reset();
  }

  /** Forgets what was seen, for example after a seek. */
  reset() {
    /** @type {?Sight} */
    this.moved = null;
    /** @type {?Sight} */
    this.shown = null;
  }

  /**
   * @param {Sight} sight
   * @returns {{stuckMs: number, frozenMs: number}} for how long the clock stands, and for how long it has run without a new picture
   */
  observe(sight) {
    const { now, time, frames, playing } = sight;
    if (!playing) {
      this.reset();
      return { stuckMs: 0, frozenMs: 0 };
    }
    if (!this.moved || Math.abs(time - this.moved.time) >= MIN_MOVE) this.moved = sight;
    if (!this.shown || frames === null || frames !== this.shown.frames) this.shown = sight;
    const ran = Math.max(0, time - this.shown.time) * 1000;
    return { stuckMs: now - this.moved.now, frozenMs: Math.min(ran, now - this.shown.now) };
  }
}

/**
 * What the player should do: nothing, seek, or replace its media source.
 *
 * @typedef {{type: 'none'} | {type: 'nudge' | 'jump', to: number} | {type: 'reattach'}} Rescue
 */

/**
 * @param {object} sight
 * @param {number} sight.time
 * @param {import('./plan.js').Range[]} sight.ranges  what is buffered
 * @param {number} sight.stuckMs
 * @param {number} sight.frozenMs
 * @param {boolean} sight.coming  whether media at the position may still be had
 * @param {boolean} sight.streaming  whether the segment at the end of the buffer is still received
 * @param {boolean} sight.hidden  whether nobody sees the page: browsers may stop the decoder then
 * @param {boolean} sight.seeking  whether a seek is under way
 * @param {number} sight.nudges  the seeks since the player last went on by itself
 * @returns {Rescue}
 */
export function rescue({ time, ranges, stuckMs, frozenMs, coming, streaming, hidden, seeking, nudges }) {
  const here = ranges.find(([from, to]) => time >= from - 0.001 && time < to);
  const ahead = here ? here[1] - time : 0;
  if (here && ahead > AT_END) {
    const enough = !streaming || here !== ranges.at(-1) || ahead > REBUFFER || stuckMs >= STOOD_LONG_MS;
    const patience = (seeking ? SEEKING_MS : STUCK_MS) * 2 ** nudges;
    const stands = (stuckMs >= patience && enough) || frozenMs >= FROZEN_MS;
    if (!stands || hidden) return { type: 'none' };
    // After a buffer underrun Chromium waits for more media than the rest of a segment has; a seek makes it play what there is.
    return nudges < MAX_NUDGES ? { type: 'nudge', to: time + 0.001 } : { type: 'reattach' };
  }
  const next = ranges.find(([from]) => from > time);
  if (next && stuckMs >= (coming ? GAP_PATIENCE_MS : STUCK_MS)) return { type: 'jump', to: next[0] + 0.001 };
  return { type: 'none' };
}

// @ts-check
// Decides which segments are in the browser's buffer: those ahead of the viewer as far as they fit, and as many behind. This file
// has no access to the DOM.

const MIB = 1024 * 1024;

/**
 * How much is buffered. Browsers take from 30 MiB (phones) to 150 MiB; when one takes less than this, the limit is lowered.
 *
 * @typedef {{aheadSeconds: number, behindSeconds: number, bytes: number}} Limits
 * @type {Limits}
 */
export const LIMITS = Object.freeze({ aheadSeconds: 120, behindSeconds: 120, bytes: 64 * MIB });

/** The part of the bytes that the media ahead may take, so that the viewer can go back a little at once. */
const AHEAD_SHARE = 0.75;

/** Positions that differ by less than this are the same: browsers round times. */
const SAME = 0.05;

/**
 * A segment as the plan sees it. Times are in seconds on the session's time line.
 *
 * @typedef {object} Span
 * @property {number} idx
 * @property {number} start
 * @property {number} end  `Infinity` while the segment is still received
 * @property {number} bytes  0 while unknown
 * @property {boolean} buffered  whether the buffer has media of it
 * @property {boolean} more  whether media of it can be had now that the buffer does not have
 */

/**
 * Returns what to do next: the segment to append, and one to remove from the buffer. Nothing needs to be done when both are null.
 *
 * @param {Span[]} spans  in the order of their positions
 * @param {number} time  the viewer's position
 * @param {Limits} limits
 * @returns {{append: ?Span, remove: ?Span}}
 */
export function planBuffer(spans, time, limits = LIMITS) {
  const at = Math.max(0, spans.findLastIndex((span) => span.start <= time + SAME));
  const kept = new Set();
  let bytes = 0;
  /** @param {Span[]} candidates @param {number} most */
  const keep = (candidates, most) => {
    for (const span of candidates) {
      if (kept.size && bytes + span.bytes > most) return;
      bytes += span.bytes;
      kept.add(span);
    }
  };
  const ahead = spans.filter((span, i) => i === at || (i > at && span.start < time + limits.aheadSeconds));
  const behind = spans.filter((span, i) => i < at && span.end > time - limits.behindSeconds).reverse();
  keep(ahead, limits.bytes * AHEAD_SHARE);
  keep(behind, limits.bytes);
  return {
    append: ahead.find((span) => kept.has(span) && span.more) ?? null,
    remove: spans.find((span) => span.buffered && !kept.has(span)) ?? null,
  };
}

/**
 * @typedef {[from: number, to: number]} Range  in seconds
 */

/** Tells whether there are media at a position. @param {Range[]} ranges @param {number} time */
export const isInside = (ranges, time) => ranges.some(([from, to]) => time >= from - 0.001 && time < to);

/** Returns how many seconds of a stretch are buffered. @param {Range[]} ranges @param {number} start @param {number} end */
export const overlap = (ranges, start, end) => ranges
  .reduce((sum, [from, to]) => sum + Math.max(0, Math.min(to, end) - Math.max(from, start)), 0);

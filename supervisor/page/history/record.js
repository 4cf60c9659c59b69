// @ts-check
// What the browser keeps of a session, and which sessions are dropped when there are too many. Pure functions.

import { MAX_MESSAGE } from '../protocol.js';

/** How much is kept in all. */
export const LIMITS = Object.freeze({ bytes: 512 * 1024 * 1024, sessions: 50 });
/** A session whose end the page has not seen is kept by the server for about so long. */
const UNTOLD_MS = 300_000;

/**
 * A session in the history. Times are milliseconds of Unix time.
 *
 * @typedef {object} HistoryRecord
 * @property {string} id  the session's
 * @property {?import('../protocol.js').ResumeToken} token  null when it opens nothing any more
 * @property {?string} [watchToken]  opens the film, and nothing else; null when there is none
 * @property {boolean} [hasFilm]  whether the server has kept its film
 * @property {boolean} [isPictures]  whether it has JPEG frames, which are not kept
 * @property {boolean} [isAtCap]  whether it has all its segments
 * @property {number} startedAt
 * @property {number} at  when it was last changed
 * @property {string[]} prompts  of the finished segments
 * @property {number} seconds  the length of the film
 * @property {?number} resumableUntil  as the server has told; null where it has not
 * @property {{[idx: string]: number}} media  the bytes of each segment that is kept
 * @property {number} stateBytes  the size of the continuation state that is kept; 0 without one
 * @property {?Blob} thumbnail
 */

/**
 * Returns what is to be kept of a session; null while it has no finished segment.
 *
 * @param {import('../state.js').SessionState} state
 */
export function summaryOf({ sessionId, segments, resume, filmKey, watchToken, resumableUntil, playerMode, outcome, stream }) {
  const done = segments.filter((segment) => segment.state === 'done');
  if (!sessionId || !done.length) return null;
  const token = resume ?? filmKey;
  const isAtCap = outcome === 'segment_cap';
  const mayGoOn = !isAtCap || (stream?.limits?.max_cap_extensions ?? 0) > 0;
  return {
    id: sessionId,
    token: token?.session_id === sessionId ? token : null,
    watchToken,
    hasFilm: filmKey !== null,
    isPictures: playerMode === 'legacy_jpeg',
    isAtCap,
    prompts: done.map(({ prompt, original }) => original ?? prompt),
    seconds: done.reduce((sum, { duration }) => sum + duration, 0),
    resumableUntil: mayGoOn ? resumableUntil : 0,
  };
}

/** @typedef {NonNullable<ReturnType<typeof summaryOf>>} Summary */

/**
 * Returns the record of a session with what is new. A token that the session has lost opens its film all the same.
 *
 * @param {HistoryRecord | undefined} record  undefined for a session that is not in the history
 * @param {Summary} summary
 * @param {number} now
 * @returns {HistoryRecord}
 */
export const renewed = (record, summary, now) => ({
  startedAt: now, media: {}, stateBytes: 0, thumbnail: null, ...record, ...summary, token: summary.token ?? record?.token ?? null,
  watchToken: summary.watchToken ?? record?.watchToken ?? null, at: now,
});

/**
 * Returns the record, or the summary, of a session that the server does not have any more.
 *
 * @template {HistoryRecord | Summary} T
 * @param {T} of
 * @returns {T}
 */
export const gone = (of) => ({ ...of, token: null, watchToken: null, hasFilm: false });

/** Tells whether a token is of no use any more: the session cannot be resumed, and its film was not kept. @param {HistoryRecord} record @param {number} now */
export const isSpent = (record, now) => record.token !== null && record.hasFilm === false && !mayResume(record, now);

/** Returns the bytes that a session takes. @param {HistoryRecord} record */
export const bytesOf = ({ media, stateBytes }) => Object.values(media).reduce((sum, bytes) => sum + bytes, stateBytes);

/** @param {readonly HistoryRecord[]} records */
export const newestFirst = (records) => [...records].sort((a, b) => b.at - a.at);

/**
 * Returns the sessions to drop: the oldest ones. The newest one stays.
 *
 * @param {readonly HistoryRecord[]} records
 * @param {{bytes: number, sessions: number}} [limits]
 * @returns {string[]}
 */
export function surplus(records, limits = LIMITS) {
  let bytes = 0;
  return newestFirst(records).filter((record, i) => {
    bytes += bytesOf(record);
    return i > 0 && (i >= limits.sessions || bytes > limits.bytes);
  }).map(({ id }) => id);
}

/** Returns the number of segments that the browser has. @param {HistoryRecord} record */
export const segmentsOf = ({ media }) => Object.keys(media).length;

/** Tells whether the browser has the whole film. @param {HistoryRecord} record */
export const isWhole = (record) => segmentsOf(record) >= record.prompts.length;

/** Tells whether the server may still have the session, so that it goes on where it was. @param {HistoryRecord} record @param {number} now */
export const mayResume = ({ token, resumableUntil, at }, now) => token !== null && now < (resumableUntil ?? at + UNTOLD_MS);

/** Tells whether a continuation state is small enough to open a session with. @param {number} bytes */
export const isUsable = (bytes) => bytes < MAX_MESSAGE;

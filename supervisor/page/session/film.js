// @ts-check
// What the page has of the session's film, and what the server sends again after a lost connection.

import { newSegment } from '../state.js';
import { sendWaiting } from './prompts.js';

/** @typedef {import('./transition.js').Transition} Transition */

/** Tells whether the server keeps the film of this session. @param {import('../state.js').SessionState} state */
export const isRecorded = ({ stream }) => Boolean(stream?.limits?.recording);

/**
 * What the page tells the server that it has, so that the rest is sent again: whole segments, and messages of the next one.
 *
 * @param {import('../state.js').SessionState} state
 */
export function have({ segments, receiving }) {
  let next = segments[0]?.idx ?? 0;
  for (const { idx, state } of segments) if (idx === next && state === 'done') next += 1;
  const begun = segments.find(({ idx }) => idx === next);
  const messages = begun?.state === 'interrupted' && receiving?.idx === next ? receiving.messages : 0;
  return { segments: next, messages };
}

/**
 * Adds what the page does not know to its segments.
 *
 * @param {Transition} next
 * @param {import('../protocol.js').FilmInfo} film
 * @param {?number} [position]  where the viewer is to begin, in seconds
 */
export function addFilm(next, film, position = null) {
  const { state } = next;
  const known = new Map(state.segments.map((segment) => [segment.idx, segment]));
  /** @type {import('../state.js').Segment[]} */
  const added = [];
  for (const told of film.segments) {
    const place = { start: told.start_ms / 1000, duration: told.duration_ms / 1000, bytes: told.bytes };
    const here = known.get(told.segment_idx);
    if (here && !here.here && ['done', 'interrupted'].includes(here.state)) next.change(told.segment_idx, { ...place, state: 'done' });
    if (here) continue;
    added.push({
      ...newSegment(told.segment_idx, place.start, next.now), ...place,
      state: 'done', prompt: told.prompt, original: told.original_prompt,
      source: told.prompt_source, attempt: told.attempt, generationMs: told.generation_time_ms, here: false,
    });
    dropAnswered(next, told);
  }
  if (!added.length) return;
  state.segments = [...state.segments, ...added].sort((a, b) => a.idx - b.idx);
  state.mime ??= film.mime;
  const pictures = film.segments.filter((s) => s.thumbnail).map((s) => s.segment_idx);
  const mime = /** @type {string} */ (film.mime); // a film with segments has one
  next.run({ type: 'show_film', mime, fps: film.fps, pictures, position });
}

/**
 * A request that the server has run while the connection was lost does not wait any more.
 *
 * @param {Transition} next
 * @param {import('../protocol.js').FilmSegment} told
 */
function dropAnswered({ state }, { prompt, original_prompt: original, prompt_source: source }) {
  if (!state.catchingUp || !['user', 'enhanced'].includes(source)) return;
  const found = state.waiting.findIndex((request) => [prompt, original].includes(request.prompt));
  state.waiting = state.waiting.filter((_, i) => i !== found);
}

/**
 * The connection is back. Waits for what is sent again before anything is requested, since the server may have run requests whose
 * segments have not arrived.
 *
 * @param {Transition} next
 * @param {number} nextIdx  the session's next segment
 */
export function catchUp(next, nextIdx) {
  const { state } = next;
  if (have(state).segments >= nextIdx) state.catchingUp = null;
}

/** Segments up to this one have been sent again, or cannot be. @param {Transition} next @param {number} idx */
export function sentAgain(next, idx) {
  const { state } = next;
  if (!state.catchingUp) return;
  const told = Math.max(state.catchingUp.told, idx + 1);
  state.catchingUp = { ...state.catchingUp, told };
  if (!state.catchingUp.loading && told >= (state.stream?.next_segment_idx ?? 0)) caughtUp(next);
}

/** The server has lost the media of a finished segment. What it was, the film tells. @param {Transition} next @param {number} idx */
export function mediaLost(next, idx) {
  const { state } = next;
  const { catchingUp, filmKey } = state;
  if (!catchingUp || !filmKey) return;
  if (!catchingUp.loading) next.run({ type: 'load_film', key: filmKey });
  state.catchingUp = { ...catchingUp, loading: true };
  sentAgain(next, idx);
}

/** All that was sent again has arrived. @param {Transition} next */
export function caughtUp(next) {
  const { state } = next;
  state.catchingUp = null;
  closeGaps(next, state.stream?.next_segment_idx ?? 0);
  sendWaiting(next);
}

/** What was interrupted before `idx` is finished, though not all of it is here. @param {Transition} next @param {number} idx */
export function closeGaps(next, idx) {
  const { segments, stream } = next.state;
  for (const segment of segments) {
    if (segment.idx >= idx || segment.state !== 'interrupted') continue;
    const duration = segment.duration || (stream ? stream.num_frames / stream.fps : 0);
    next.change(segment.idx, { state: 'done', duration, here: false });
  }
}

// @ts-check
// The reducer of the spectators' page: it shows what `WS /v1/watch` sends and what the server keeps, and sends nothing.

import { addFilm } from './session/film.js';
import { addMedia, mediaInit, mediaSegmentComplete, segmentStart, stepComplete } from './session/segments.js';
import { Transition } from './session/transition.js';
import { initialState, isUnderWay } from './state.js';

/**
 * @typedef {import('./state.js').SessionState} SessionState
 * @typedef {import('./protocol.js').FilmInfo} FilmInfo
 *
 * @typedef {{type: 'open' | 'reconnect_due'}
 *   | {type: 'film_loaded', film: ?FilmInfo, refused: boolean}
 *   | {type: 'starved', on: boolean}
 *   | {type: 'reported', title: string, text: string}
 *   | import('./connection.js').ConnectionEvent} WatchEvent
 */

/** @param {import('./protocol.js').ResumeToken} key  opens the film */
export const initialWatchState = (key) => ({
  ...initialState(), filmKey: key, sessionId: key.session_id, phase: /** @type {const} */ ('connecting'),
});

/** The segment that the page needs next. @param {SessionState} state */
export const nextSegment = ({ segments }) => (segments.findLast((s) => s.state === 'done')?.idx ?? -1) + 1;

/**
 * Computes the state after an event, as the reducer of a session does.
 *
 * @param {SessionState} state
 * @param {WatchEvent} event
 * @param {number} now
 */
export function reduceWatch(state, event, now) {
  const next = new Transition(state, now);
  const changed = handle(next, event);
  return changed ? { state: next.state, effects: next.effects } : { state, effects: [] };
}

/** @param {Transition} next @param {WatchEvent} event @returns {boolean} whether the event's type is known */
function handle(next, event) {
  const { state } = next;
  switch (event.type) {
    case 'open': load(next); break;
    case 'reconnect_due':
      if (state.phase !== 'lost') return false;
      state.phase = 'connecting';
      load(next);
      break;
    case 'film_loaded': filmLoaded(next, event); break;
    case 'starved': state.starved = event.on; break;
    case 'reported': next.notice(event.title, event.text); break;
    case 'reconnect_scheduled': if (state.reconnect) state.reconnect = { ...state.reconnect, dueAt: event.dueAt }; break;
    case 'message': return handleMessage(next, /** @type {any} */ (event.message));
    case 'media': addMedia(next, event.bytes); break;
    case 'closed': if (state.phase !== 'complete' && state.phase !== 'closed') lose(next); break;
    default: return false;
  }
  return true;
}

/** @param {Transition} next @param {any} message @returns {boolean} whether the message's type is known */
function handleMessage(next, message) {
  const { state } = next;
  switch (message.type) {
    case 'watch_start':
      Object.assign(state, { phase: 'active', reconnect: null });
      state.playerMode = message.mime.startsWith('image/') ? 'legacy_jpeg' : 'av_fmp4';
      if (state.playerMode === 'legacy_jpeg') next.run({ type: 'reset_player', mode: 'legacy_jpeg' });
      next.run({ type: 'open_player', fps: message.fps || 24 });
      break;
    case 'ltx2_segment_start': segmentStart(next, message); break;
    case 'step_complete': stepComplete(next, message); break;
    case 'media_init': mediaInit(next, message); break;
    case 'media_segment_complete': mediaSegmentComplete(next, message); break;
    case 'film_segment': segmentFinished(next, message); break;
    case 'watch_skipped': skipped(next, message.segment_idx); break;
    case 'error': if (message.restarting) next.change(message.segment_idx, { state: 'restarting' }); break;
    case 'segment_cancelled': next.change(message.segment_idx, { state: 'cancelled' }); break;
    case 'watch_end': ended(next); break;
    default: return false;
  }
  return true;
}

/** @param {Transition} next */
function load(next) {
  const { filmKey } = next.state;
  if (filmKey) next.run({ type: 'load_film', key: filmKey });
}

/** @param {Transition} next @param {{film: ?FilmInfo, refused: boolean}} loaded */
function filmLoaded(next, { film, refused }) {
  const { state } = next;
  if (!film) {
    if (state.phase !== 'connecting') return;
    if (!refused) {
      lose(next);
      return;
    }
    state.phase = 'closed';
    next.run({ type: 'finish_player' });
    return;
  }
  const last = film.segments.at(-1);
  const isFirst = !state.segments.length;
  // A spectator sees the latest scene first, and a film that has ended from its beginning.
  addFilm(next, film, isFirst && film.live && last ? last.start_ms / 1000 : null);
  if (state.phase !== 'connecting') return;
  if (film.live) next.run({ type: 'connect', first: '' });
  else ended(next);
}

/** @param {Transition} next @param {import('./protocol.js').FilmSegment} told */
function segmentFinished(next, told) {
  const { state } = next;
  const { segment_idx: idx } = told;
  const segment = state.segments.find((s) => s.idx === idx);
  if (!segment) {
    load(next);
    return;
  }
  const here = state.receiving?.idx === idx && state.receiving.messages > 0;
  next.change(idx, {
    state: 'done', here, start: told.start_ms / 1000, duration: told.duration_ms / 1000, bytes: told.bytes,
    generationMs: told.generation_time_ms,
  });
  if (here) next.run({ type: 'finish_media', idx });
  state.receiving = null;
}

/**
 * The connection was too slow: the rest of the segments before `idx` comes from the film.
 *
 * @param {Transition} next
 * @param {number} idx
 */
function skipped(next, idx) {
  for (const segment of next.state.segments) {
    if (segment.idx < idx && isUnderWay(segment)) next.change(segment.idx, { state: 'interrupted' });
  }
  next.state.receiving = null;
  load(next);
}

/** @param {Transition} next */
function lose(next) {
  const { state } = next;
  for (const segment of state.segments) if (isUnderWay(segment)) next.change(segment.idx, { state: 'interrupted' });
  const attempt = (state.reconnect?.attempt ?? 0) + 1;
  Object.assign(state, { phase: 'lost', receiving: null, reconnect: { attempt, dueAt: null, answered: false, why: '' } });
  next.run({ type: 'schedule_reconnect', attempt });
}

/** @param {Transition} next */
function ended(next) {
  const { state } = next;
  if (state.phase === 'active') load(next); // for what was not sent
  for (const segment of state.segments) if (isUnderWay(segment)) next.change(segment.idx, { state: 'failed' });
  Object.assign(state, { phase: 'complete', reconnect: null });
  next.run({ type: 'finish_player' });
}

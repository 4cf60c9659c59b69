// @ts-check
// Plays the shots of a story: as requests in order, in the session that is open or in a new one.

import { canContinue, current, finishedSegments, isLive, isUnderWay, isUnsaved } from '../state.js';
import { connect, leave } from './lifecycle.js';
import { queueRequest, sendWaiting, withdrawRequest } from './prompts.js';

/**
 * A version of a story that is to be played.
 *
 * @typedef {object} Play
 * @property {string} id  the version's
 * @property {string[]} prompts
 * @property {import('../protocol.js').PromptSource} source
 * @property {boolean} fresh  whether it wants a session of its own
 * @property {import('./transition.js').Sampling} sampling
 *
 * @typedef {import('./transition.js').Transition} Transition
 * @typedef {import('../state.js').SessionState} SessionState
 */

/**
 * Plays a version. Its shots take the place of those of an earlier version that still wait. A session that has no room for all of them
 * is followed by a new one; the user is asked first when a film would be lost, or when the session still runs.
 *
 * @param {Transition} next
 * @param {Play} play
 * @param {boolean} [agreed]  whether the user has agreed to a new session
 */
export function playStory(next, play, agreed = false) {
  const { state } = next;
  state.asking = null;
  const goesOn = !play.fresh && !agreed && (isLive(state) || canContinue(state, next.now)) && roomFor(state) >= play.prompts.length;
  if (goesOn) {
    for (const { id, shot } of state.waiting) if (shot) withdrawRequest(next, id);
    queueShots(next, play);
    if (!isLive(state)) connect(next);
    sendWaiting(next);
    return;
  }
  const asks = isUnsaved(state) || (isLive(state) && !play.fresh && state.segments.length > 0);
  if (asks && !agreed) state.asking = { story: play };
  else if (isLive(state)) follow(next, play);
  else begin(next, play);
}

/** The number of segments that the session may still be asked for. Shots of an earlier version make room. @param {SessionState} state */
export function roomFor(state) {
  const cap = state.stream?.generation_segment_cap;
  const isOpening = !state.resume && ['connecting', 'queued'].includes(state.phase); // the stream is that of the session before
  if (!cap || isOpening) return Infinity;
  if (!isLive(state) && state.outcome === 'segment_cap') return 0; // another story has its own session
  const waiting = state.waiting.filter(({ shot }) => !shot).length;
  return cap - finishedSegments(state) - (isUnderWay(current(state)) ? 1 : 0) - waiting;
}

/** Leaves the session that is open, and plays the version in the next one. @param {Transition} next @param {Play} play */
function follow(next, play) {
  next.state.following = play;
  leave(next);
  if (!isLive(next.state)) beginFollowing(next);
}

/** Begins the session that was to follow the one that has just ended. @param {Transition} next */
export function beginFollowing(next) {
  const { following } = next.state;
  if (following) begin(next, following);
}

/** @param {Transition} next @param {NonNullable<SessionState['following']>} play */
function begin(next, play) {
  const { state } = next;
  const waiting = state.waiting.filter(({ shot }) => !shot); // some wait for a key
  Object.assign(state, { following: null, notice: null, waiting });
  if (state.resume) next.keepToken(null);
  queueShots(next, play);
  for (const { prompt, message } of play.own ?? []) queueRequest(next, { prompt, source: message.source, sampling: samplingOf(message) });
  connect(next);
}

/** @param {import('../protocol.js').PromptRequest} message @returns {import('./transition.js').Sampling} */
const samplingOf = ({ type, request_id, prompt, source, ...sampling }) => sampling;

/** @param {Transition} next @param {Play} play */
function queueShots(next, { id, prompts, source, sampling }) {
  prompts.forEach((prompt, at) => queueRequest(next, { prompt, source, sampling, shot: { version: id, at } }));
}

/** Takes all requests out of those that wait. @param {Transition} next */
export function clearWaiting(next) {
  for (const { id } of next.state.waiting) withdrawRequest(next, id);
}

/**
 * Returns what has become of each shot of a version: the state of its segment, `queued` while it waits, and nothing else.
 *
 * @param {SessionState} state
 * @param {string} version
 * @param {number} shots
 * @returns {string[]}
 */
export function shotStates({ waiting, segments }, version, shots) {
  /** @param {{shot?: ?import('../state.js').Shot}} of @param {number} at */
  const isShot = ({ shot }, at) => shot?.version === version && shot.at === at;
  return Array.from({ length: shots }, (_, at) => {
    if (waiting.some((request) => isShot(request, at))) return 'queued';
    return segments.findLast((segment) => isShot(segment, at))?.state ?? '';
  });
}

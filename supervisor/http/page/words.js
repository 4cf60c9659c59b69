// @ts-check
// The page's texts: for codes, and for the state of the session. This file has no access to the DOM.

import { clock, ordinal, phrase, span } from './format.js';
import { current, isReconnecting, isUnderWay } from './state.js';

/**
 * @typedef {import('./state.js').SessionState} SessionState
 * @typedef {import('./state.js').Segment} Segment
 */

/** @type {{[reason in import('./connection.js').CloseReason]?: string}} */
const CLOSE_WORDS = {
  unreachable: 'The server cannot be reached.',
  ended: 'The session has ended.',
  going_away: 'The server is going away.',
  rejected: 'The server did not accept the opening message.',
  broken: 'The connection broke off.',
  rule_broken: 'The server closed the session because a rule was broken.',
  too_large: 'A message was too large for the server.',
  internal: 'The server had an internal fault.',
  busy: 'The server is full at the moment. Try again in a little while.',
};

/** @type {{[code: string]: string}} */
const ERROR_WORDS = {
  session_rejected: 'The server did not take this session.',
  invalid_message: 'The server did not accept that.',
  preset_mismatch: 'The server serves another preset.',
  gpu_unavailable: 'No GPU is available.',
  worker_failed: 'The segment failed on its GPU.',
  upstream_timeout: 'No language model has answered.',
  internal_error: 'The server had an internal fault.',
  prompt_blocked: 'This prompt was blocked by the safety filter.',
  unauthorized: 'You are not allowed to open a session here.',
  state_incompatible: 'The saved state does not fit this server.',
  segment_timeout: 'The segment took too long and was stopped.',
};

/** @type {{[outcome: string]: string}} */
const OUTCOME_WORDS = {
  segment_cap: 'Finished: the session has all its segments',
  stop_requested: 'Session ended',
  error: 'The session ended after a fault',
  taken: 'The session is no longer here',
};

/** @type {{[stage: string]: string}} */
const STAGE_WORDS = { denoise: 'denoising', refine: 'refining', decode: 'decoding' };

/** @type {{[source: string]: string}} */
const SOURCE_WORDS = { user: 'you', curated: 'curated', enhanced: 'enhanced', auto_extension: 'extended' };

/** @param {{[key: string]: string}} words @param {string} key */
const look = (words, key) => (Object.hasOwn(words, key) ? words[key] : null);

/** Explains a closed connection. @param {import('./connection.js').CloseReason} reason @param {number} code */
export const closeWords = (reason, code) => CLOSE_WORDS[reason] ?? `The connection was closed (code ${code}).`;

/** Explains an error code. @param {string} code */
export const errorWords = (code) => look(ERROR_WORDS, code) ?? `${phrase(code)}.`;

/** Names the source of a prompt. @param {string} source */
export const sourceWords = (source) => look(SOURCE_WORDS, source) ?? phrase(source);

/** Describes the progress of a segment. @param {Segment} segment */
export function segmentWords({ state, stage, step, steps, attempt }) {
  const stageWord = look(STAGE_WORDS, stage) ?? phrase(stage);
  const stepWords = steps ? ` ${step} of ${steps}` : '';
  const words = state === 'denoising' ? `${stageWord}${stepWords}` : state === 'restarting' ? 'starting again' : state;
  return attempt > 1 ? `${words}, attempt ${attempt}` : words;
}

/**
 * Describes the session in one line, with the tone of the status lamp.
 *
 * @param {SessionState} state
 * @returns {[tone: 'idle' | 'wait' | 'ready' | 'work' | 'air' | 'bad', words: string]}
 */
export function statusWords(state) {
  const segment = current(state);
  switch (state.phase) {
    case 'idle': return ['idle', 'Not connected'];
    case 'lost': return ['wait', 'Reconnecting'];
    case 'connecting': return ['wait', state.reconnect ? 'Reconnecting' : 'Connecting'];
    case 'queued': return ['wait', 'Waiting for a GPU'];
    case 'binding': return ['wait', `GPU ${state.gpu?.gpu_id} assigned`];
    case 'complete': return ['idle', look(OUTCOME_WORDS, state.outcome ?? '') ?? 'Session ended'];
    case 'closed': return state.notice ? ['bad', 'Disconnected'] : ['idle', 'Session ended'];
    default:
  }
  if (segment?.state === 'streaming') return ['air', `Segment ${segment.idx + 1} is streaming`];
  if (segment?.state === 'denoising') return ['work', `Segment ${segment.idx + 1} is being generated`];
  if (segment?.state === 'restarting') return ['wait', `Segment ${segment.idx + 1} starts again`];
  if (state.settings.pause) return ['wait', 'Paused'];
  const [next] = state.waiting;
  if (next?.enhance && !next.written) return ['work', 'A language model writes the prompt'];
  return next ? ['work', 'Asking for the next segment'] : ['ready', 'Ready for a prompt'];
}

/** Describes the position in the queue. @param {{position: number, depth: number}} queue */
export const queueWords = ({ position, depth }) => ({
  place: ordinal(position + 1),
  text: `${position ? `${position} ahead of you` : 'You are next'}, ${depth} waiting`,
});

/** Explains why the video does not continue. @param {SessionState} state */
export function starvedWords(state) {
  const segment = current(state);
  if (isReconnecting(state)) return 'Waiting for the connection';
  if (segment && isUnderWay(segment)) return `Waiting for the next segment: ${segmentWords(segment)}`;
  if (state.waiting.length) return 'Waiting for the next segment';
  return state.settings.pause ? 'Generation is paused' : 'Send a prompt to go on from here';
}

/** Describes the time until the next connection attempt. @param {SessionState} state @param {number} now */
export function reconnectWords({ reconnect }, now) {
  if (reconnect?.dueAt == null) return 'trying again now';
  return `trying again in ${Math.max(1, Math.ceil((reconnect.dueAt - now) / 1000))} s`;
}

/**
 * Describes the session's idle timeout, with the remaining time while the session is idle.
 *
 * @param {SessionState} state
 * @param {number} now
 */
export function idleWords(state, now) {
  const limit = state.gpu?.session_timeout;
  if (limit == null) return 'none';
  const left = Math.max(0, limit - (now - Math.max(state.activeAt, state.freeAt)) / 1000);
  const counts = state.phase === 'active' && !isUnderWay(current(state));
  return counts && left < limit - 5 ? `ends in ${clock(left)}` : span(limit);
}

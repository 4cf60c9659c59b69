// @ts-check
// The prompts of a session: the requests that wait for their segments, and the curated prompts.

import { plural } from '../format.js';
import { curatedPrompts, current, maxWaiting } from '../state.js';

/** An error without a request id is attributed to the latest request if it arrives within this time. */
const REFUSAL_WINDOW_MS = 5000;
/** The number of variants of a prompt to ask for. */
const VARIANTS = 3;

/**
 * @typedef {import('./transition.js').Transition} Transition
 * @typedef {import('../state.js').SessionState} SessionState
 */

/** Sends the requests that were not sent yet, as far as the server's queue has room. @param {Transition} next */
export function sendWaiting(next) {
  const { state } = next;
  if (state.phase !== 'active') return;
  const enhance = Boolean(state.stream?.features?.enhancement) && state.settings.enhancement;
  state.waiting = state.waiting.map((request, i) => {
    if (request.sent || i >= maxWaiting(state)) return request;
    next.send(request.message);
    return { ...request, enhance, written: null, sent: true };
  });
}

/**
 * Returns the prompt of the refused request to its field. The error does not name the request; the latest one is taken for it if
 * it was sent only a short time ago.
 *
 * @param {Transition} next
 */
export function takeBackNewest(next) {
  const { state } = next;
  const request = state.waiting.at(-1);
  if (!request || next.now - request.at > REFUSAL_WINDOW_MS) return;
  state.waiting = state.waiting.slice(0, -1);
  next.run({ type: 'return_prompt', prompt: request.prompt });
}

/**
 * Notes what a language model has written for a waiting request.
 *
 * @param {Transition} next
 * @param {string} original  the prompt of the request
 * @param {string} written
 */
export function promptWritten({ state }, original, written) {
  const request = state.waiting.find((r) => r.prompt === original && !r.written);
  state.waiting = state.waiting.map((r) => (r === request ? { ...r, written } : r));
}

/** Sends the curated prompts to the server. @param {Transition} next */
export function applyCurated(next) {
  const { state } = next;
  state.appliedCurated = state.settings.curated;
  state.curatedNote = 'Holds from the next segment on.';
  next.send({ type: 'seed_prompts_updated', seed_prompts: curatedPrompts(state.settings) });
}

/**
 * Returns the curated prompts in the order in which the loop continues: a prompt whose segment was interrupted comes first, and
 * one whose segment was finished comes last.
 *
 * @param {SessionState} state
 */
export function rotatedPrompts({ settings, segments }) {
  const all = curatedPrompts(settings);
  const last = segments.findLast((s) => s.source === 'curated');
  const found = last ? all.indexOf(last.original ?? last.prompt) : -1;
  if (found < 0) return all;
  const at = last?.state === 'interrupted' ? found : found + 1;
  return [...all.slice(at), ...all.slice(0, at)];
}

/**
 * Asks for variants of a prompt.
 *
 * @param {Transition} next
 * @param {string} prompt  if it is empty, the first curated prompt or else that of the latest segment is taken
 */
export function rewrite(next, prompt) {
  const { state } = next;
  const last = current(state);
  const seed = prompt || curatedPrompts(state.settings)[0] || (last?.original ?? last?.prompt);
  state.curatedNote = seed ? 'Asking…' : 'Write a prompt first.';
  if (seed) next.send({ type: 'rewrite_seed_prompts', seed_prompt: seed, count: VARIANTS });
}

/**
 * Adds variants to the curated prompts.
 *
 * @param {Transition} next
 * @param {import('../protocol.js').SeedPromptsRewritten} message
 */
export function seedPromptsRewritten(next, { alternatives = [] }) {
  const { state } = next;
  const text = [...curatedPrompts(state.settings), ...alternatives].join('\n');
  state.settings = { ...state.settings, curated: text };
  state.curatedNote = `${plural(alternatives.length, 'variant')} added. Apply to use them.`;
  next.run({ type: 'write_curated', text });
}

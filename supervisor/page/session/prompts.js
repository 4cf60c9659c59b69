// @ts-check
// The prompts of a session: the requests that wait for their segments, and the curated prompts.

import { plural } from '../format.js';
import { curatedPrompts, current, maxWaiting } from '../state.js';

/** An error of a server that names no requests is taken for the latest request's if it comes within this time. */
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
  if (state.phase !== 'active' || state.catchingUp) return;
  const enhance = Boolean(state.stream?.features?.enhancement) && state.settings.enhancement;
  state.waiting = state.waiting.map((request, i) => {
    if (request.sent || i >= maxWaiting(state)) return request;
    next.send(request.message);
    return { ...request, enhance, written: null, sent: true };
  });
}

/**
 * Adds a request behind all that wait. It is sent when the server's queue has room for it.
 *
 * @param {Transition} next
 * @param {{prompt: string, source: import('../protocol.js').PromptSource, sampling: import('./transition.js').Sampling,
 *   shot?: import('../state.js').Shot}} request
 */
export function queueRequest({ state, now }, { prompt, source, sampling, shot }) {
  state.requests += 1;
  const id = `p${state.requests}`;
  /** @type {import('../protocol.js').PromptRequest} */
  const message = { type: 'segment_prompt_source', prompt, source, ...sampling, request_id: id };
  state.waiting = [...state.waiting, { id, prompt, message, at: now, sent: false, ...(shot && { shot }) }];
}

/**
 * Returns the prompt of the refused request to its field. A server that names no requests is taken to mean the latest one, if that
 * was sent only a short time ago.
 *
 * @param {Transition} next
 * @param {string} [id]  the request that the server has named
 */
export function takeBack(next, id) {
  const { state } = next;
  const newest = state.waiting.at(-1);
  const recent = newest && next.now - newest.at <= REFUSAL_WINDOW_MS ? newest : undefined;
  const request = id === undefined ? recent : state.waiting.find((r) => r.id === id);
  if (!request) return;
  if (request.edit != null) {
    change(next, request.id, { edit: null }); // it waits as it was
    return;
  }
  state.waiting = state.waiting.filter((r) => r !== request);
  if (!request.shot) next.run({ type: 'return_prompt', prompt: request.prompt }); // a shot stays in its storyboard
}

/**
 * Gives a request that waits another prompt.
 *
 * @param {Transition} next
 * @param {string} id
 * @param {string} prompt
 */
export function editRequest(next, id, prompt) {
  const request = next.state.waiting.find((r) => r.id === id);
  if (!request || !prompt || prompt === request.prompt) return;
  if (!isSent(next, request)) {
    change(next, id, { prompt, message: { ...request.message, prompt } });
    return;
  }
  change(next, id, { edit: prompt });
  next.send({ type: 'edit_request', request_id: id, prompt });
}

/**
 * Moves a request that waits towards the front (-1) or the end (1).
 *
 * @param {Transition} next
 * @param {string} id
 * @param {number} by
 */
export function moveRequest(next, id, by) {
  const { state } = next;
  const from = state.waiting.findIndex((r) => r.id === id);
  const to = from + by;
  const [request, other] = [state.waiting[from], state.waiting[to]];
  // The server has those that were sent, before all others.
  if (!request || !other || isSent(next, request) !== isSent(next, other)) return;
  if (isSent(next, request)) next.send({ type: 'edit_request', request_id: id, position: to });
  else place(next, id, to);
}

/** Takes a request out of those that wait. @param {Transition} next @param {string} id */
export function withdrawRequest(next, id) {
  const request = next.state.waiting.find((r) => r.id === id);
  if (!request) return;
  if (isSent(next, request)) next.send({ type: 'withdraw_request', request_id: id });
  else requestWithdrawn(next, { request_id: id });
}

/** @param {Transition} next @param {{request_id: string}} message */
export function requestWithdrawn(next, { request_id: id }) {
  const { state } = next;
  state.waiting = state.waiting.filter((r) => r.id !== id);
  sendWaiting(next);
}

/** @param {Transition} next @param {import('../protocol.js').RequestEdited} message */
export function requestEdited(next, { request_id: id, position }) {
  const request = next.state.waiting.find((r) => r.id === id);
  if (!request) return;
  if (request.edit != null) {
    const message = { ...request.message, prompt: request.edit };
    change(next, id, { prompt: request.edit, message, edit: null, written: null });
  }
  place(next, id, position);
}

/** Tells of shots that the session had no room for. @param {Transition} next */
export function reportLeftShots(next) {
  const left = next.state.waiting.filter(({ shot }) => shot).length;
  if (!left) return;
  const text = `It may have ${plural(next.state.stream?.generation_segment_cap ?? 0, 'segment')}. ${plural(left, 'shot')} of the story ${left === 1 ? 'was' : 'were'} not made.`;
  next.notice('The session has all its segments.', text, { soft: true });
}

/** @param {Transition} next @param {import('../state.js').Request} request */
const isSent = ({ state }, request) => request.sent && state.phase === 'active';

/** @param {Transition} next @param {string} id @param {Partial<import('../state.js').Request>} fields */
function change({ state }, id, fields) {
  state.waiting = state.waiting.map((r) => (r.id === id ? { ...r, ...fields } : r));
}

/** @param {Transition} next @param {string} id @param {number} to */
function place({ state }, id, to) {
  const request = state.waiting.find((r) => r.id === id);
  const others = state.waiting.filter((r) => r.id !== id);
  if (request) state.waiting = [...others.slice(0, to), request, ...others.slice(to)];
}

/**
 * Notes what a language model has written for a waiting request.
 *
 * @param {Transition} next
 * @param {{request_id?: string, original_prompt: string}} message
 * @param {string} written
 */
export function promptWritten({ state }, { request_id: id, original_prompt: original }, written) {
  const request = state.waiting.find((r) => (id === undefined ? r.prompt === original && !r.written : r.id === id));
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

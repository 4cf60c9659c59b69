// @ts-check
// One prompt written out to the shots of a story, and the shots of a story rewritten as an instruction says: by a language model at
// the server, or else by the page itself.

import { Refused, ask } from '../api.js';

/** The number of shots that one prompt is written out to. */
export const SHOTS = 6;
/** A language model that writes six prompts takes its time. */
const TIMEOUT_MS = 90_000;
const NOT_FOUND = 404;

/**
 * The shots of a story.
 *
 * @typedef {object} Rollout
 * @property {string[]} prompts
 * @property {?string} label  a title for the story
 * @property {?string} model  the language model that has written them
 * @property {boolean} fallback_used  whether no language model has written them
 * @property {?string} reason  why
 */

/**
 * @typedef {object} Wish
 * @property {string} prompt  what the story is about; or, with `current`, what is to be changed
 * @property {readonly string[]} [current]  the shots to change
 */

/**
 * Asks the server for the shots.
 *
 * @param {Wish} wish
 * @param {AbortSignal} signal  ends the request
 * @returns {Promise<Rollout>}
 */
export async function rollOut(wish, signal) {
  const body = wish.current ? wish : { ...wish, count: SHOTS };
  try {
    return readRollout(await ask('v1/prompts/rollout', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
      signal: either(signal, AbortSignal.timeout(TIMEOUT_MS)),
    }));
  } catch (error) {
    if (error instanceof Refused && error.status === NOT_FOUND) return withoutModel(wish);
    throw error;
  }
}

/** Returns a signal that ends with the first of them, as `AbortSignal.any` does where the browser has it. @param {AbortSignal[]} signals */
function either(...signals) {
  const first = new AbortController();
  for (const signal of signals) {
    if (signal.aborted) first.abort(signal.reason);
    else signal.addEventListener('abort', () => first.abort(signal.reason), { once: true });
  }
  return first.signal;
}

/**
 * Reads the server's answer. Throws an error where it has no shots.
 *
 * @param {any} answer
 * @returns {Rollout}
 */
export function readRollout({ prompts, label = null, model = null, fallback_used = false, reason = null }) {
  const isList = Array.isArray(prompts) && prompts.length > 0 && prompts.every((prompt) => typeof prompt === 'string' && prompt.trim());
  if (!isList) throw new Error('the server has answered without any shots');
  return { prompts, label, model, fallback_used, reason };
}

/**
 * Returns the shots where the server has no such route: the prompt for each of them, since each shot goes on from the one before; or each
 * shot with the instruction behind it.
 *
 * @param {Wish} wish
 * @returns {Rollout}
 */
export function withoutModel({ prompt, current }) {
  const prompts = current ? current.map((shot) => `${shot.replace(/[\s.]+$/, '')}. ${prompt}`) : Array(SHOTS).fill(prompt);
  return { prompts, label: null, model: null, fallback_used: true, reason: 'this server does not write shots' };
}

// @ts-check
// The page's HTTP requests. Each of them throws an error with a text for the user: the server's message when it refuses.

import { ofServer } from './address.js';

const STATUS_TIMEOUT_MS = 4000;
/** A segment has some megabytes, and a slow connection takes its time for them. */
const FILM_TIMEOUT_MS = 60_000;

/** The error of a request that the server answered with an HTTP error status. */
export class Refused extends Error {
  /** @param {number} status @param {string} [message] @param {?string} [param]  the field of the request that is wrong */
  constructor(status, message, param = null) {
    super(message ?? `the server refused (status ${status})`);
    this.status = status;
    this.param = param;
  }
}

/** Tells whether the server has refused because it does not have what was asked for, or not for this token. @param {unknown} error */
export const isGone = (error) => error instanceof Refused && [401, 404].includes(error.status);

/** What requests without a token of a session show. @type {{[name: string]: string}} */
let shown = {};

/** Shows a key with the requests that follow; an empty one is none. @param {string} key */
export const useKey = (key) => { shown = key ? { authorization: `Bearer ${key}` } : {}; };

/** Tells whether requests show a key, which addresses in elements do not. */
export const showsKey = () => 'authorization' in shown;

/** Returns a ticket, which opens one WebSocket in place of the key. @returns {Promise<string>} */
export const fetchTicket = () => ask('v1/tickets', { method: 'POST', signal: AbortSignal.timeout(STATUS_TIMEOUT_MS) }).then(({ ticket }) => ticket);

const silent = () => { throw new Error('the server does not answer'); };

/** @typedef {Omit<RequestInit, 'headers'> & {headers?: {[name: string]: string}}} Options */

/** @param {string} path  a route of the server @param {Options} options */
const send = (path, options) => fetch(ofServer(path), { ...options, headers: { ...shown, ...options.headers } }).catch(silent);

/**
 * @param {string} path
 * @param {Options} options
 * @param {(text: string) => any} [read]  reads the answer's text
 * @returns {Promise<any>}
 */
export async function ask(path, options, read = JSON.parse) {
  const answer = await send(path, options);
  const text = await answer.text().catch(silent);
  const body = parsed(text, read);
  if (!answer.ok) throw new Refused(answer.status, body?.error?.message, body?.error?.param);
  return body;
}

/** Returns a file. @param {string} path @param {Options} options */
export async function askFile(path, options) {
  const answer = await send(path, options);
  if (!answer.ok) throw new Refused(answer.status);
  return answer.blob().catch(silent);
}

/** @param {string} text @param {(text: string) => any} read */
function parsed(text, read) {
  try {
    return read(text);
  } catch {
    return {}; // a proxy's own page
  }
}

/** Returns the state of the server and of its GPUs. */
export const serverStatus = () => ask('status', { cache: 'no-store', signal: AbortSignal.timeout(STATUS_TIMEOUT_MS) });

/** Asks the server to move a session to another GPU at the end of its segment. @param {string} id */
export const moveSession = (id) => ask(`v1/sessions/${encodeURIComponent(id)}/move`, { method: 'POST' });

/** Drains or restarts the worker of a GPU. @param {string} id @param {'drain' | 'restart'} operation */
export const operateGpu = (id, operation) => ask(`v1/workers/${encodeURIComponent(id)}/${operation}`, { method: 'POST' });

/** Reloads the system prompts, and returns the origin of each. @returns {Promise<{[name: string]: string}>} */
export const reloadSystemPrompts = () => ask('v1/prompts/reload', { method: 'POST' });

/**
 * A film that the server keeps, with the token that opens it.
 *
 * @typedef {import('./protocol.js').ResumeToken} FilmKey
 */

/** @param {FilmKey} key @param {string} path */
const ofSession = ({ session_id: id }, path) => `v1/sessions/${encodeURIComponent(id)}/${path}`;

/** @param {FilmKey} key @param {{cache?: RequestCache, ms?: number}} [options] @returns {Options} */
const withToken = ({ token }, { cache, ms = FILM_TIMEOUT_MS } = {}) => ({
  headers: { authorization: `Bearer ${token}` }, cache, signal: AbortSignal.timeout(ms),
});

/** Returns what the server keeps of a film. @param {FilmKey} key @returns {Promise<import('./protocol.js').FilmInfo>} */
export const filmInfo = (key) => ask(ofSession(key, 'film'), withToken(key, { cache: 'no-store', ms: STATUS_TIMEOUT_MS }));

/**
 * Returns the media of a segment; null when the server does not keep them.
 *
 * @param {FilmKey} key
 * @param {number} idx
 */
export async function filmSegment(key, idx) {
  const answer = await fetch(ofServer(ofSession(key, `film/${idx}.mp4`)), withToken(key));
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Refused(answer.status);
  return new Uint8Array(await answer.arrayBuffer());
}

/** Returns a picture of a segment. @param {FilmKey} key @param {number} idx */
export const filmPicture = (key, idx) => askFile(ofSession(key, `film/${idx}.jpg`), withToken(key));

/** Returns the address of the whole film as one file. @param {FilmKey} key @param {string} name */
export const filmAddress = (key, name) => `${ofServer(ofSession(key, 'film.mp4'))}?${new URLSearchParams({ download: name, token: key.token })}`;

// @ts-check
// The page's HTTP requests. Their addresses are relative to the page, which a proxy may serve below a path. Each of them throws an
// error with a text for the user: the server's message when it refuses.

const STATUS_TIMEOUT_MS = 4000;

/** The error of a request that the server answered with an HTTP error status. */
export class Refused extends Error {
  /** @param {number} status @param {string} [message] */
  constructor(status, message) {
    super(message ?? `the server refused (status ${status})`);
    this.status = status;
  }
}

/** @param {string} path @param {RequestInit} options @returns {Promise<any>} */
async function ask(path, options) {
  const answer = await fetch(path, options).catch(() => { throw new Error('the server does not answer'); });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, body?.error?.message);
  return body;
}

/** Returns the state of the server and of its GPUs. */
export const serverStatus = () => ask('status', { cache: 'no-store', signal: AbortSignal.timeout(STATUS_TIMEOUT_MS) });

/** Asks the server to move a session to another GPU at the end of its segment. @param {string} id */
export const moveSession = (id) => ask(`v1/sessions/${encodeURIComponent(id)}/move`, { method: 'POST' });

/** Drains or restarts the worker of a GPU. @param {string} id @param {'drain' | 'restart'} operation */
export const operateGpu = (id, operation) => ask(`v1/workers/${encodeURIComponent(id)}/${operation}`, { method: 'POST' });

/** Reloads the system prompts, and returns the origin of each. @returns {Promise<{[name: string]: string}>} */
export const reloadSystemPrompts = () => ask('v1/prompts/reload', { method: 'POST' });

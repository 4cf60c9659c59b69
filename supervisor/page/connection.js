// @ts-check
// The WebSocket of a session: connecting, reconnecting with exponential backoff, and the close codes. This file knows JSON and
// bytes. It does not know what the messages mean, and it has no access to the DOM.

import { parseMessage } from './protocol.js';
import { isOwn } from './state.js';

/** Limits how long a connection may take to open. Browsers by themselves wait for minutes. */
const CONNECT_TIMEOUT_MS = 10_000;

/** A connection over which nothing was received for so long is dead. The server sends a heartbeat every 10 s. */
const SILENCE_MS = 30_000;
/** The same while a snapshot is on its way: it has many megabytes, and a message is told of only when all of it is there. */
const SNAPSHOT_SILENCE_MS = 300_000;

/** The status code of a connection that is given up for another one: the session keeps its GPU. */
const RECONNECTING = 4000;

const TOKEN_KEY = 'fastvideo.session';
/** What belongs to the session and changes more often than its token. */
const MEMORY_KEY = 'fastvideo.memory';
/** The curated prompts of the form, which stay when a session is over. */
const CURATED_KEY = 'fastvideo.curated';

/** The exponential backoff between connection attempts: the pause doubles up to a limit, and jitter shortens it. */
export const BACKOFF = Object.freeze({ firstMs: 500, longestMs: 10_000, jitter: 0.3 });

/**
 * Returns the pause before an attempt, in milliseconds.
 *
 * @param {number} attempt  counts from 1
 * @param {number} random  from 0 to 1; spreads the attempts of many pages in time
 */
export function backoffMs(attempt, random) {
  const pause = Math.min(BACKOFF.longestMs, BACKOFF.firstMs * 2 ** (attempt - 1));
  return pause * (1 - BACKOFF.jitter * random);
}

/**
 * The reason why a connection was closed, from its close code.
 *
 * @typedef {'unreachable' | 'ended' | 'going_away' | 'rejected' | 'no_status' | 'broken' | 'rule_broken' | 'too_large'
 *   | 'internal' | 'restarting' | 'busy' | 'other'} CloseReason
 */

/** @type {ReadonlyMap<number, CloseReason>} */
const REASONS = new Map([
  [1000, 'ended'], [1001, 'going_away'], [1003, 'rejected'], [1005, 'no_status'], [1006, 'broken'], [1008, 'rule_broken'],
  [1009, 'too_large'], [1011, 'internal'], [1012, 'restarting'], [1013, 'busy'],
]);

/**
 * Returns the meaning of a close code. A connection that never opened has the reason `unreachable`.
 *
 * @param {number} code
 * @param {boolean} opened
 * @returns {CloseReason}
 */
export function closeReason(code, opened) {
  return opened ? REASONS.get(code) ?? 'other' : 'unreachable';
}

/** @type {readonly CloseReason[]} */
const LOST = ['unreachable', 'going_away', 'no_status', 'broken', 'restarting'];
/** @type {readonly CloseReason[]} */
const NOT_YET = ['internal', 'busy'];

/**
 * Tells whether the session can be resumed after a connection was closed for this reason. During a reconnect the server may
 * be full or still starting, so `busy` and `internal` do not end the session then. A session that runs is told `busy` by a
 * router that has found no server to go on with.
 *
 * @param {CloseReason} reason
 * @param {boolean} reconnecting
 * @param {boolean} running
 */
export function canResume(reason, reconnecting, running) {
  return LOST.includes(reason) || (reconnecting && NOT_YET.includes(reason)) || (running && reason === 'busy');
}

/**
 * An event that a connection reports.
 *
 * @typedef {{type: 'message', message: import('./protocol.js').ServerMessage}
 *   | {type: 'media', bytes: Uint8Array}
 *   | {type: 'closed', reason: CloseReason, code: number, text: string}
 *   | {type: 'reconnect_scheduled', dueAt: number}
 *   | {type: 'reconnect_due'}} ConnectionEvent
 */

/** The browser's clock, timers and random numbers. Tests pass their own. */
export const CLOCK = {
  now: () => performance.now(),
  /** @param {() => void} run @param {number} ms @returns {any} */
  after: (run, ms) => setTimeout(run, ms),
  /** @param {any} timer */
  cancel: (timer) => clearTimeout(timer),
  random: () => Math.random(),
};

/** Owns at most one WebSocket, or the timer of the next connection attempt. */
export class Connection {
  /**
   * @param {() => any} openSocket  makes a new `WebSocket`
   * @param {(event: ConnectionEvent) => void} report
   * @param {object} [options]
   * @param {typeof CLOCK} [options.clock]
   * @param {number} [options.silenceMs]  after how long without a message the connection is given up
   */
  constructor(openSocket, report, { clock = CLOCK, silenceMs = SILENCE_MS } = {}) {
    this.openSocket = openSocket;
    this.report = report;
    this.clock = clock;
    this.silenceMs = silenceMs;
    /** @type {any} */
    this.socket = null;
    /** @type {any} */
    this.timer = null;
    /** @type {any} */
    this.silence = null;
  }

  /** Opens a connection, and drops the one before. @param {string} first  the opening message; empty for none */
  connect(first) {
    this.drop();
    const socket = this.openSocket();
    let opened = false;
    const timeout = this.clock.after(() => socket.close(), CONNECT_TIMEOUT_MS);
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => {
      this.clock.cancel(timeout);
      opened = true;
      if (first) socket.send(first);
      if (socket === this.socket) this.expectMore(socket);
    };
    socket.onmessage = (/** @type {{data: string | ArrayBuffer}} */ { data }) => {
      if (socket !== this.socket) return;
      this.expectMore(socket);
      if (typeof data !== 'string') {
        this.report({ type: 'media', bytes: new Uint8Array(data) });
        return;
      }
      const message = parseMessage(data);
      if (message) this.report({ type: 'message', message });
    };
    socket.onclose = (/** @type {{code: number, reason: string}} */ { code, reason }) => {
      this.clock.cancel(timeout);
      if (socket !== this.socket) return;
      this.clock.cancel(this.silence);
      this.socket = null;
      this.report({ type: 'closed', reason: closeReason(code, opened), code, text: reason });
    };
    this.socket = socket;
  }

  /** Gives the connection up when nothing is received for a while. @param {any} socket @param {number} [ms] */
  expectMore(socket, ms = this.silenceMs) {
    this.clock.cancel(this.silence);
    if (ms === Infinity) return;
    this.silence = this.clock.after(() => {
      if (socket !== this.socket) return;
      // The browser would wait for minutes until the closing handshake fails.
      this.drop();
      this.report({ type: 'closed', reason: 'broken', code: 1006, text: '' });
    }, ms);
  }

  /**
   * Starts the backoff timer: reports `reconnect_scheduled` at once, and `reconnect_due` when the timer fires.
   *
   * @param {number} attempt  counts from 1
   */
  scheduleReconnect(attempt) {
    this.drop();
    const pause = backoffMs(attempt, this.clock.random());
    this.timer = this.clock.after(() => {
      this.timer = null;
      this.report({ type: 'reconnect_due' });
    }, pause);
    this.report({ type: 'reconnect_scheduled', dueAt: this.clock.now() + pause });
  }

  /**
   * Sends a message if the connection is open; otherwise the message is dropped.
   *
   * @param {import('./protocol.js').ClientMessage} message
   */
  send(message) {
    if (this.socket?.readyState !== 1) return;
    this.socket.send(JSON.stringify(message));
    if (message.type === 'snapshot_state') this.expectMore(this.socket, SNAPSHOT_SILENCE_MS);
  }

  /** Starts the closing handshake. `closed` is reported when it is done. The session's GPU is free for others. */
  close() {
    this.socket?.close(1000);
  }

  /** Closes the socket and cancels the timer. Neither of them reports anything afterwards. */
  drop() {
    this.clock.cancel(this.silence);
    this.clock.cancel(this.timer);
    this.timer = null;
    this.socket?.close(RECONNECTING);
    this.socket = null;
  }
}

/**
 * Keeps the resume token, the requests that wait, the viewer's position and the curated prompts in the session storage: they survive
 * a reload of the tab, and other tabs cannot read them.
 */
export class TokenStore {
  /** @param {() => Storage} storage  a function, since the mere access throws where storage is forbidden */
  constructor(storage) {
    this.storage = storage;
  }

  /** @returns {?import('./state.js').Kept} */
  load() {
    try {
      const token = JSON.parse(this.storage().getItem(TOKEN_KEY) ?? 'null');
      if (typeof token?.token !== 'string') return null;
      const memory = JSON.parse(this.storage().getItem(MEMORY_KEY) ?? 'null');
      return memory?.session_id === token.session_id ? { ...memory, ...token } : token;
    } catch {
      return null; // storage is forbidden, or holds something else
    }
  }

  /** Returns the curated prompts of the form. */
  loadCurated() {
    try {
      return this.storage().getItem(CURATED_KEY) ?? '';
    } catch {
      return ''; // storage is forbidden
    }
  }

  /** @param {?import('./protocol.js').ResumeToken} token  `null` deletes the stored one */
  save(token) {
    try {
      if (token) this.storage().setItem(TOKEN_KEY, JSON.stringify(token));
      else for (const key of [TOKEN_KEY, MEMORY_KEY]) this.storage().removeItem(key);
    } catch {
      // Storage is forbidden: the session does not survive a reload.
    }
  }

  /**
   * Stores what is to be there again after a reload, besides the token. The curated prompts do not take a session.
   *
   * @param {import('./state.js').SessionState} state
   * @param {number} position  the viewer's, in seconds
   */
  remember({ resume, waiting, asked, outcome, settings }, position) {
    const asks = asked?.id && isOwn(asked.message.source) ? asked : null;
    try {
      if (settings.curated) this.storage().setItem(CURATED_KEY, settings.curated);
      else this.storage().removeItem(CURATED_KEY);
      if (!resume) return;
      this.storage().setItem(MEMORY_KEY, JSON.stringify({ session_id: resume.session_id, waiting, asked: asks, outcome, position }));
    } catch {
      // Storage is forbidden, or full.
    }
  }
}

// @ts-check
// Brings a session back after a reload or from the history, and takes what the server keeps of its film.

import { emptySession, isLive, isUnsaved } from '../state.js';
import { addFilm, sentAgain } from './film.js';
import { connect } from './lifecycle.js';

/**
 * A session of the history with which the user wants to go on.
 *
 * @typedef {object} Continued
 * @property {import('../protocol.js').ResumeToken} token
 * @property {boolean} isLive  whether the server says that another page may have it
 * @property {boolean} [isAtCap]  whether it has all its segments, so that it has to be extended
 *
 * @typedef {import('./transition.js').Transition} Transition
 */

/**
 * Goes on with a session of the history. The user is asked first when a film would be lost, or when the session is taken from another page.
 *
 * @param {Transition} next
 * @param {Continued} continued
 * @param {boolean} [agreed]  whether the user has agreed to that
 * @returns {boolean} whether something changes
 */
export function continueSession(next, continued, agreed = false) {
  const { state } = next;
  const { token } = continued;
  if (isLive(state)) return false;
  const isHere = state.resume?.session_id === token.session_id;
  state.asking = null;
  if (!agreed && !isHere && (continued.isLive || isUnsaved(state))) {
    state.asking = { continued };
  } else if (isHere) {
    dropChosen(next);
    connect(next);
  } else {
    const outcome = continued.isAtCap ? 'segment_cap' : null;
    if (state.kept?.session_id !== token.session_id) state.kept = { ...token, outcome };
    restore(next);
  }
  return true;
}

/** The files that were chosen are for a new session. @param {Transition} next */
function dropChosen(next) {
  const { state } = next;
  if (!state.chosenImage && !state.chosenState) return;
  Object.assign(state, { chosenImage: null, chosenState: null });
  next.run({ type: 'clear_attachments' });
}

/** Brings back the session that this tab had before a reload: first its film, then the connection. @param {Transition} next */
export function restore(next) {
  const { state } = next;
  const { kept } = state;
  if (!kept) return;
  dropChosen(next);
  const { session_id, token, waiting = [], asked = null, outcome = null, position = null } = kept;
  next.keepToken({ session_id, token });
  state.requestedMode = state.settings.jpeg ? 'legacy_jpeg' : 'av_fmp4';
  const numbers = [...waiting, ...(asked ? [asked] : [])].map(({ id }) => Number(id.slice(1)) || 0);
  Object.assign(state, {
    ...emptySession(), image: null, extends: false,
    phase: 'connecting', kept: null, restoring: true, sessionId: session_id, playerMode: state.requestedMode, notice: null,
    waiting: waiting.map((request) => ({ ...request, at: next.now, sent: false })), asked: asked && { ...asked, at: next.now }, position,
    requests: Math.max(state.requests, ...numbers), outcome,
  });
  state.reconnect = { attempt: 0, dueAt: null, answered: false, why: '' };
  next.run({ type: 'reset_player', mode: state.playerMode });
  next.run({ type: 'load_film', key: { session_id, token } });
}

/**
 * The server has told what it keeps of a film. It is asked before the page connects, while segments are sent again, and when
 * the session is gone.
 *
 * @param {Transition} next
 * @param {{sessionId: string, film: ?import('../protocol.js').FilmInfo}} loaded  null when the server does not keep it
 */
export function filmLoaded(next, { sessionId, film }) {
  const { state } = next;
  if (sessionId !== state.sessionId) return;
  if (film && isPictures(film)) {
    if (state.restoring) usePictures(next);
  } else if (film?.segments.length) {
    state.filmKey ??= state.resume;
    addFilm(next, film, state.restoring ? state.position : null);
  }
  if (state.restoring) {
    state.restoring = false;
    state.phase = 'closed';
    if (!film || film.resumable || film.live) connect(next);
    else showEnded(next);
  } else if (state.catchingUp) {
    state.catchingUp = { ...state.catchingUp, loading: false };
    sentAgain(next, -1);
  } else if (!film && !state.resume) {
    state.filmKey = null;
  }
}

/**
 * Tells whether a session has JPEG frames. The player cannot show those that the server keeps.
 *
 * @param {import('../protocol.js').FilmInfo} film
 */
const isPictures = ({ mime }) => Boolean(mime?.startsWith('image/'));

/** @param {Transition} next */
function usePictures(next) {
  next.state.requestedMode = next.state.playerMode = 'legacy_jpeg';
  next.run({ type: 'reset_player', mode: 'legacy_jpeg' });
}

/** The session cannot be resumed, and its film is still there. @param {Transition} next */
function showEnded(next) {
  const { state } = next;
  const [first] = [...(state.asked ? [state.asked] : []), ...state.waiting].filter(({ shot }) => !shot);
  if (first) next.run({ type: 'return_prompt', prompt: first.prompt });
  Object.assign(state, { phase: 'complete', outcome: 'stop_requested', reconnect: null, waiting: [], asked: null });
  next.keepToken(null);
  next.run({ type: 'finish_player' });
  next.notice('The session has ended.', 'Its film is still here for a while. Download it to keep it.', { soft: true });
}

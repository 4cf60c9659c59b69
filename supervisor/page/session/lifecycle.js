// @ts-check
// The lifecycle of a session: opening, resuming after a lost connection, and ending.

import { canResume } from '../connection.js';
import { span } from '../format.js';
import { MAX_MESSAGE } from '../protocol.js';
import { curatedPrompts, current, emptySession, isLive, isOwn, isReconnecting, isRunning, isUnderWay } from '../state.js';
import { closeAdvice, closeWords, errorWords } from '../words.js';
import { catchUp, have, isRecorded, mediaLost } from './film.js';
import { reportLeftShots, rotatedPrompts, sendWaiting, takeBack } from './prompts.js';
import { finishSegment } from './segments.js';

/** @typedef {import('./transition.js').Transition} Transition */

const RESTARTING = { title: 'The segment is being made again.', text: 'Its GPU has failed, and another one takes over.' };
const TAKEN = {
  title: 'The session is no longer on this page.',
  text: 'It goes on in another tab or window, or an operator has ended it.',
};
const LOST = { title: 'A part of the film is lost.', text: 'The server does not keep it any more.' };
const NOT_RESUMED = 'The session cannot be continued.';
const GONE = 'The server no longer has it: it has ended, nothing happened in it for too long, or the server was restarted and had it only '
  + 'in memory. Start a new one.';
const UNFIT = 'The server makes pictures of another size or with another model now. Start a new one.';

/** Connects: resumes the session if there is a resume token, and opens a new one otherwise. @param {Transition} next */
export function connect(next) {
  const { state } = next;
  if (isLive(state) && state.phase !== 'lost') return;
  if (state.chosenState) next.keepToken(null);
  const { resume, settings } = state;
  // A session that has ended by its cap stays at it until the server has extended it.
  state.extends = resume !== null && (state.extends || state.outcome === 'segment_cap');
  Object.assign(state, {
    notice: null, outcome: null, refusal: null, kept: null, leaving: false, drainDeadline: null, queue: null, asking: null,
    resumableUntil: null, endsAt: null, needsKey: false,
  });
  // A resumed session keeps its media mode, and its initial image until a segment was generated from it.
  const same = resume !== null && resume.session_id === state.sessionId;
  if (!same) {
    state.image = state.chosenImage;
    state.requestedMode = settings.jpeg ? 'legacy_jpeg' : 'av_fmp4';
  }
  // Loop generation would otherwise start a curated prompt before the waiting prompts arrive.
  state.holdsLoop = state.waiting.length > 0 || (state.asked !== null && isOwn(state.asked.message.source));
  state.catchingUp = same && state.filmKey ? { told: 0, loading: false } : null;
  /** @type {import('../protocol.js').SessionInit} */
  const init = {
    type: 'session_init_v2',
    curated_prompts: same ? rotatedPrompts(state) : curatedPrompts(settings),
    initial_image: state.image,
    enhancement_enabled: settings.enhancement,
    auto_extension_enabled: settings.auto,
    loop_generation_enabled: settings.loop && !state.holdsLoop,
    single_clip_mode: settings.single,
    stream_mode: state.requestedMode,
    continuation_state: state.chosenState,
    resume: resume && state.catchingUp ? { ...resume, have: have(state) } : resume,
    heartbeat: true,
    preview: true, // what the server can do is known later
    ...(state.extends && { extend: true }),
  };
  const first = JSON.stringify(init);
  if (first.length > MAX_MESSAGE) {
    stop(next);
    if (state.phase === 'lost') state.phase = 'closed';
    next.notice('The opening message is too large.', 'Image and state together may have 48 MiB. Remove one of them.');
    return;
  }
  state.appliedCurated = settings.curated;
  state.phase = 'connecting';
  const { attempt, why } = state.reconnect ?? { attempt: 0, why: '' };
  state.reconnect = resume && { attempt, dueAt: null, answered: false, why };
  next.run({ type: 'connect', first });
}

/** @param {Transition} next @param {import('../protocol.js').QueueStatus} message */
export function queueStatus(next, { position, queue_depth: depth }) {
  answered(next);
  Object.assign(next.state, { phase: 'queued', queue: { position, depth } });
}

/** @param {Transition} next @param {import('../protocol.js').GpuAssigned} message */
export function gpuAssigned(next, message) {
  const { state } = next;
  answered(next);
  if (state.phase !== 'active') { // an active session moves to another GPU
    state.phase = 'binding';
    if (!state.sessionId || message.session_id !== state.sessionId) newSession(next);
  }
  state.sessionId = message.session_id ?? null;
  state.gpu = message;
  state.watchToken = message.watch_token ?? null;
  const { session_id, resume_token: token } = message;
  next.keepToken(session_id && token ? { session_id, token } : null);
}

/** Notes that the server has answered the connection attempt. @param {Transition} next */
function answered({ state }) {
  if (state.reconnect) state.reconnect = { ...state.reconnect, answered: true };
}

/** Clears the segments and the player. A resumed session keeps both instead. @param {Transition} next */
function newSession(next) {
  const { state } = next;
  Object.assign(state, { ...emptySession(), playerMode: state.requestedMode });
  next.run({ type: 'reset_player', mode: state.playerMode });
}

/** @param {Transition} next @param {import('../protocol.js').StreamStart} message */
export function streamStart(next, message) {
  const { state } = next;
  Object.assign(state, { phase: 'active', stream: message, reconnect: null, activeAt: next.now, told: null, extends: false });
  if (isRecorded(state)) state.filmKey = state.resume;
  next.run({ type: 'open_player', fps: message.fps || 24 });
  Object.assign(state, { chosenImage: null, chosenState: null });
  next.run({ type: 'clear_attachments' });
  resumeSegment(next, message);
  if (state.settings.pause) next.send({ type: 'generation_paused_updated', paused: true });
  sendWaiting(next);
  if (state.holdsLoop && state.settings.loop) next.send({ type: 'loop_generation_updated', enabled: true });
}

/**
 * Continues a resumed session. The segment that the lost connection interrupted is either complete here, or is requested again.
 *
 * @param {Transition} next
 * @param {import('../protocol.js').StreamStart} stream
 */
function resumeSegment(next, { next_segment_idx: nextIdx = 0, num_frames, fps }) {
  const { state } = next;
  const segment = current(state);
  const { asked } = state;
  state.asked = null;
  catchUp(next, nextIdx);
  if (segment?.state === 'interrupted' && segment.idx < nextIdx && !state.catchingUp) {
    // The server had finished the segment, but its last messages were lost.
    if (!segment.duration) next.change(segment.idx, { duration: num_frames / fps });
    finishSegment(next, segment.idx);
  }
  if (!asked || (asked.idx ?? 0) < nextIdx || (asked.message.source === 'curated' && state.settings.loop)) return;
  state.waiting = [{ ...asked, sent: false }, ...state.waiting];
}

/** @param {Transition} next */
export function leave(next) {
  const { state } = next;
  state.left = state.resume;
  next.keepToken(null);
  state.leaving = true;
  if (isReconnecting(state) || state.restoring) giveUp(next);
  else if (state.phase === 'active') next.send({ type: 'leave' });
  else next.run({ type: 'close' });
}

/** Stops reconnecting. The session can be resumed later unless the user has left it. @param {Transition} next */
export function giveUp(next) {
  const { state } = next;
  next.run({ type: 'drop' });
  stop(next);
  Object.assign(state, { phase: 'closed', restoring: false });
  next.run({ type: 'finish_player' });
  if (!state.resume) return;
  next.notice('The connection is lost.', 'The server keeps the session for a while.', { soft: true, reconnect: true });
}

/** @param {Transition} next @param {import('../protocol.js').StreamComplete} message */
export function streamComplete(next, { reason, resumable_until }) {
  const { state } = next;
  // A server that shuts down sends this too. It then closes with 1001, and the session can be resumed.
  if (reason === 'stop_requested' && !state.leaving && state.resume) return;
  state.outcome = reason;
  state.resumableUntil = unixMs(resumable_until);
  next.keepToken(state.resumableUntil ? state.resume ?? state.left : null);
  if (reason === 'segment_cap') reportLeftShots(next);
  stop(next);
  state.phase = 'complete';
  next.run({ type: 'finish_player' });
}

/** The server keeps the session for a while, so that the next prompt goes on with it. @param {Transition} next @param {import('../protocol.js').SessionTimeout} message */
export function sessionTimeout(next, { timeout_seconds, resumable_until }) {
  next.state.outcome = 'timeout';
  next.state.resumableUntil = unixMs(resumable_until);
  const text = `Nothing happened in it for ${span(timeout_seconds)}. Send a prompt to go on with it.`;
  next.notice('The session has ended.', text, { soft: true, reconnect: true });
}

/** @param {?string} [date]  as in RFC 3339 @returns {?number} */
const unixMs = (date) => (date ? Date.parse(date) || null : null);

/** @param {Transition} next @param {import('../protocol.js').ServerError} error */
export function serverError(next, { code, message, retryable, segment_idx, restarting = false, request_id }) {
  const { state } = next;
  const segment = current(state);
  next.recordError({ code, message, retryable });
  if (state.catchingUp && segment_idx !== undefined && segment_idx < (state.stream?.next_segment_idx ?? 0)) {
    mediaLost(next, segment_idx);
    next.notice(LOST.title, LOST.text, { soft: true });
    return;
  }
  if (code === 'upstream_timeout') state.curatedNote = '';
  const refused = ['invalid_message', 'prompt_blocked'].includes(code) && state.phase === 'active';
  if (segment && isRunning(segment) && segment.idx === segment_idx) {
    next.change(segment.idx, { state: restarting ? 'restarting' : 'failed' });
    if (!restarting) state.asked = null;
  } else if (refused) {
    takeBack(next, request_id);
  }
  if (state.reconnect && retryable) {
    // The page will reconnect.
    const why = code === 'session_rejected' ? 'The server has no room for it yet.' : errorWords({ code, message }).title;
    state.refusal = { title: '', text: why };
    return;
  }
  const taken = code === 'session_rejected' && state.phase === 'active';
  if (taken) state.outcome = 'taken';
  if (code === 'unauthorized' && state.phase !== 'active') state.needsKey = true; // the session itself may be there
  const over = ['session_rejected', 'state_incompatible', 'unauthorized'].includes(code) && !state.needsKey;
  if (over) next.keepToken(null);
  if (code === 'session_rejected' && state.reconnect) gone(next);
  let words = errorWords({ code, message });
  if (restarting) words = RESTARTING;
  else if (taken) words = TAKEN;
  else if (over && state.reconnect) words = { title: NOT_RESUMED, text: code === 'state_incompatible' ? UNFIT : GONE };
  state.refusal = state.phase === 'active' ? null : words;
  const until = restarting ? 'segment' : refused || segment_idx !== undefined ? 'request' : null;
  next.notice(words.title, words.text, { soft: retryable || taken, reconnect: taken, until });
}

/** The server does not have the session any more: nobody can watch it, and its film may be gone as well. @param {Transition} next */
function gone(next) {
  const { state } = next;
  Object.assign(state, { watchToken: null, catchingUp: null });
  if (state.filmKey) next.run({ type: 'load_film', key: state.filmKey });
}

/** @param {Transition} next @param {{reason: import('../connection.js').CloseReason, code: number, text: string}} event */
export function closed(next, { reason, code, text }) {
  const { state } = next;
  const reconnecting = state.reconnect !== null;
  const ended = state.phase === 'complete' || state.outcome === 'timeout' || state.outcome === 'taken';
  if (state.resume && !ended && !state.leaving && !state.needsKey && canResume(reason, reconnecting, state.phase === 'active')) {
    lose(next);
    return;
  }
  stop(next);
  state.phase = ended ? 'complete' : 'closed';
  next.run({ type: 'finish_player' });
  const expected = state.leaving || reason === 'ended' || reason === 'no_status';
  const cutOff = !ended || reason === 'going_away'; // a server that shuts down completes the session first
  if (!cutOff || expected) return;
  const title = closeWords(reason, code);
  next.recordError({ code, message: text || title });
  // The error that came just before explains more than the close code.
  const { refusal } = state;
  const advice = state.resume && reason !== 'rejected' ? 'Reconnect to go on where you were.' : closeAdvice(reason);
  next.notice(refusal?.title || title, refusal?.title ? refusal.text : advice, { reconnect: true });
}

/** Schedules a reconnect after the connection was lost. The player continues with the media that it has. @param {Transition} next */
function lose(next) {
  const { state } = next;
  const segment = current(state);
  if (segment && isUnderWay(segment)) next.change(segment.idx, { state: 'interrupted' });
  state.waiting = state.waiting.map((request) => ({ ...request, sent: false }));
  const attempt = (state.reconnect?.attempt ?? 0) + 1;
  Object.assign(state, {
    phase: 'lost',
    drainDeadline: null,
    reconnect: { attempt, dueAt: null, answered: false, why: state.refusal?.text ?? '' },
  });
  next.run({ type: 'schedule_reconnect', attempt });
}

/**
 * Ends the running segment and the reconnect. A prompt that did not run goes back into its field, unless another session is about to run
 * it: what waits stays until there is a key, and the user's own prompts wait behind a story that follows.
 *
 * @param {Transition} next
 */
function stop(next) {
  const { state } = next;
  const segment = current(state);
  if (segment && (isUnderWay(segment) || segment.state === 'interrupted')) {
    next.change(segment.idx, { state: state.outcome === 'stop_requested' ? 'cancelled' : 'failed' });
  }
  const reconnected = state.reconnect !== null && state.reconnect.attempt > 0;
  const asked = reconnected && state.asked && isOwn(state.asked.message.source) ? [state.asked] : [];
  const left = [...asked, ...state.waiting];
  Object.assign(state, { waiting: [], asked: null, reconnect: null });
  // The shots of a story stay in its storyboard.
  const own = left.filter(({ shot }) => !shot);
  const { following, needsKey } = state;
  if (needsKey) state.waiting = left.map((request) => ({ ...request, sent: false }));
  else if (following) state.following = { ...following, own: [...(following.own ?? []), ...own] };
  else if (own.length) next.run({ type: 'return_prompt', prompt: own[0].prompt });
}

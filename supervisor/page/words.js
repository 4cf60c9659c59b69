// @ts-check
// The page's texts: for codes, for the state of the session and for video jobs. This file has no access to the DOM.

import { clock, ordinal, phrase, sentence, span } from './format.js';
import {
  canApply, canContinue, current, curatedPrompts, finishedSegments, hasState, isLive, isReconnecting, isUnderWay, isUnsaved,
} from './state.js';
import { isCancelled } from './videos/job_list.js';

/**
 * @typedef {import('./state.js').SessionState} SessionState
 * @typedef {import('./state.js').Segment} Segment
 */

const IMAGE_TITLE = 'The first image was not accepted.';

/** @type {{[reason in import('./connection.js').CloseReason]?: string}} */
const CLOSE_WORDS = {
  unreachable: 'The server cannot be reached.',
  ended: 'The session has ended.',
  going_away: 'The server is going away.',
  rejected: 'The server did not take this session.',
  broken: 'The connection broke off.',
  rule_broken: 'The connection is too slow for the video.',
  too_large: 'That was too much for the server.',
  internal: 'The server had an internal fault.',
  busy: 'The server is full at the moment.',
};

/**
 * What the user can do when the session is not kept.
 *
 * @type {{[reason in import('./connection.js').CloseReason]?: string}}
 */
const CLOSE_ADVICE = {
  unreachable: 'Check your connection, and try again in a moment.',
  too_large: 'Choose a smaller image or state, or a shorter prompt.',
  internal: 'Try again in a moment.',
  busy: 'Try again in a little while.',
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

/**
 * What the user can do after an error.
 *
 * @type {{[code: string]: string}}
 */
const ERROR_ADVICE = {
  session_rejected: 'Try again in a little while.',
  gpu_unavailable: 'Try again in a few minutes.',
  worker_failed: 'Send the prompt again.',
  upstream_timeout: 'Try again in a moment, or write the prompt yourself.',
  internal_error: 'Try again in a moment.',
  prompt_blocked: 'Change its words and send it again.',
  unauthorized: 'Ask the operator of this server for access.',
  state_incompatible: 'It is from a server with another model or picture size, or it is damaged. Open a session without it.',
  segment_timeout: 'Send the prompt again.',
};

/**
 * What the server does not accept, by its message: a title, and what the user can do.
 *
 * @type {[pattern: RegExp, title: string, advice: (found: RegExpMatchArray) => string][]}
 */
const INVALID_WORDS = [
  [/^`initial_image.*damaged/, IMAGE_TITLE, () => 'The file is damaged. Choose another picture.'],
  [/^`initial_image.* pixels, got (\d+)x(\d+)/, IMAGE_TITLE,
    ([, width, height]) => `It has ${width}×${height} pixels, which is too large. Choose a smaller picture.`],
  [/^`initial_image.*times as long as wide/, IMAGE_TITLE, () => 'It is too long and thin. Crop it, or choose another picture.'],
  [/^`initial_image.*(at most|MiB)/, IMAGE_TITLE,
    () => 'It takes too much to read. Choose a smaller picture, or save it as a plain JPEG.'],
  [/^`initial_image/, IMAGE_TITLE, () => 'Choose a PNG, JPEG or WebP picture.'],
  [/prompts?` has (\d+) characters, at most (\d+)/, 'The prompt is too long.',
    ([, given, limit]) => `It has ${given} characters, and at most ${limit} are allowed. Shorten it and send it again.`],
  [/^`curated_prompts` has (\d+) prompts, at most (\d+)/, 'There are too many curated prompts.',
    ([, given, limit]) => `The list has ${given}, and at most ${limit} are allowed.`],
  [/^`num_inference_steps` must be from 1 to (\d+)/, 'That number of steps is not possible.',
    ([, limit]) => `Choose from 1 to ${limit} steps in the sampling options.`],
  [/guidance_scale/, 'That guidance scale is not possible.', () => 'Choose another one in the sampling options.'],
  [/seed/, 'That seed is not possible.', () => 'Choose another one in the sampling options.'],
];

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

/** Tells what to do after the connection was closed for this reason. @param {import('./connection.js').CloseReason} reason */
export const closeAdvice = (reason) => CLOSE_ADVICE[reason] ?? 'Start a new session.';

/**
 * Explains an error of the server, and tells what the user can do. The server's message is for authors of clients; it is shown
 * only where the page has no words of its own.
 *
 * @param {{code: string, message: string}} error
 * @returns {{title: string, text: string}}
 */
export function errorWords({ code, message }) {
  const title = look(ERROR_WORDS, code) ?? `${phrase(code)}.`;
  for (const [pattern, words, advice] of code === 'invalid_message' ? INVALID_WORDS : []) {
    const found = String(message ?? '').match(pattern);
    if (found) return { title: words, text: advice(found) };
  }
  return { title, text: look(ERROR_ADVICE, code) ?? sentence(message) };
}

/** Names the source of a prompt. @param {string} source */
export const sourceWords = (source) => look(SOURCE_WORDS, source) ?? phrase(source);

/** Describes the progress of a segment. @param {Segment} segment */
export function segmentWords({ state, stage, step, steps, attempt }) {
  const stageWord = look(STAGE_WORDS, stage) ?? phrase(stage);
  const stepWords = steps ? ` ${step} of ${steps}` : '';
  const words = state === 'denoising' ? `${stageWord}${stepWords}` : state === 'restarting' ? 'starting again' : state;
  return attempt > 1 ? `${words}, attempt ${attempt}` : words;
}

/** Names a session's GPU, with its server where that has a name. @param {?import('./protocol.js').GpuAssigned} gpu */
export const gpuWords = (gpu) => (gpu?.server ? `${gpu.gpu_id} of ${gpu.server}` : `${gpu?.gpu_id}`);

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
    case 'binding': return ['wait', `GPU ${gpuWords(state.gpu)} assigned`];
    case 'complete': return ['idle', look(OUTCOME_WORDS, state.outcome ?? '') ?? 'Session ended'];
    case 'closed': return state.notice ? ['bad', 'Disconnected'] : ['idle', 'Session ended'];
    default:
  }
  if (segment?.state === 'streaming') {
    return state.starved ? ['wait', `Segment ${segment.idx + 1} comes slowly`] : ['air', `Segment ${segment.idx + 1} is streaming`];
  }
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
  if (segment?.state === 'streaming') return 'Waiting for more of this segment: it comes more slowly than it plays';
  if (segment && isUnderWay(segment)) return `Waiting for the next segment: ${segmentWords(segment)}`;
  if (state.waiting.length) return 'Waiting for the next segment';
  return state.settings.pause ? 'Generation is paused' : 'Send a prompt to go on from here';
}

const DOWNLOAD_FIRST = 'Download this film first if you want to keep it.';

/**
 * Explains why something needs the user's consent to another session, and names the two answers.
 *
 * @param {SessionState} state
 * @returns {{title: string, text: string, yes: string, no: string}}
 */
export function askWords(state) {
  const { asking } = state;
  if (asking && 'continued' in asking) return continuedWords(state, asking.continued.isLive);
  const isStory = asking !== null && 'story' in asking;
  const what = isStory ? 'the story' : 'your prompt';
  let title = state.chosenState ? 'The saved state opens another session.' : 'The session has ended and cannot go on.';
  if (isStory && asking.story.fresh) title = 'A new session takes the place of this one.';
  else if (isStory && isLive(state)) title = 'The session has no room for all shots.';
  const text = `A new one begins with ${what}, and its film takes the place of this one.`;
  return { title, text: isUnsaved(state) ? `${text} ${DOWNLOAD_FIRST}` : text, yes: 'Begin a new session', no: 'Keep this film' };
}

/** @param {SessionState} state @param {boolean} isElsewhere  whether another page may have the session */
function continuedWords(state, isElsewhere) {
  const loses = isUnsaved(state) ? ` Its film takes the place of this one. ${DOWNLOAD_FIRST}` : '';
  if (!isElsewhere) return { title: 'Another session takes the place of this one.', text: loses.trim(), yes: 'Go on with the other one', no: 'Keep this film' };
  const text = `Going on with it here ends it there.${loses}`;
  return { title: 'The session may be open on another page.', text, yes: 'Go on here', no: 'Leave it there' };
}

/** Explains the prompt field. @param {boolean} goesOn  whether a prompt goes on with a session that has ended */
export const composerWords = (goesOn) => {
  const keys = 'Enter sends, Shift+Enter starts a new line.';
  return goesOn ? `The next prompt goes on with this session. ${keys}` : keys;
};

/** Tells when a session takes another prompt. @param {number} waiting  the number of prompts that wait @param {number} most  how many may */
export function roomWords(waiting, most) {
  const begun = waiting - most + 1;
  return begun === 1 ? 'There is room when the next segment begins.' : `There is room once ${begun} more segments have begun.`;
}

/** Explains why the state cannot be saved; empty where it can. @param {SessionState} state */
export function snapshotWords(state) {
  if (hasState(state)) return '';
  if (!finishedSegments(state)) return 'There is no state until the first segment is finished.';
  return 'The state can be saved while the session is open.';
}

/** Explains why the curated prompts cannot be applied; empty where they can. @param {SessionState} state */
export function applyWords(state) {
  if (canApply(state)) return '';
  return state.phase === 'active' ? 'The session has this list.' : 'The list is sent when the session opens. Apply sends later changes.';
}

/** Tells what becomes of the curated prompts. @param {SessionState} state */
export function curatedWords(state) {
  if (state.phase === 'active') return state.curatedNote;
  return curatedPrompts(state.settings).length ? applyWords(state) : '';
}

/** Tells what a server that shuts down still allows. @param {number} rest  in seconds @param {boolean} isSavable */
export const drainWords = (rest, isSavable) => {
  const text = `No new segments begin, and it stops in ${span(rest)}.`;
  return isSavable ? `${text} Save the state to go on elsewhere.` : text;
};

/**
 * Describes a session that is watched, in one line, with the tone of the status lamp.
 *
 * @param {SessionState} state
 * @returns {ReturnType<typeof statusWords>}
 */
export function watchStatusWords(state) {
  const segment = current(state);
  switch (state.phase) {
    case 'connecting': return ['wait', 'Connecting'];
    case 'lost': return ['wait', 'Reconnecting'];
    case 'complete': return ['idle', 'The film has ended'];
    case 'closed': return ['bad', 'The link does not work'];
    default:
  }
  if (segment?.state === 'streaming') return ['air', `Live: segment ${segment.idx + 1}`];
  if (segment && isUnderWay(segment)) return ['work', `Live: segment ${segment.idx + 1} is being generated`];
  return ['ready', 'Live: waiting for the next segment'];
}

/** Names the source of a prompt for a spectator. @param {string} source */
export const watchSourceWords = (source) => (source === 'user' ? 'prompt' : sourceWords(source));

/** Explains to a spectator why the video does not continue. @param {SessionState} state */
export const watchStarvedWords = (state) => (state.phase === 'lost' ? 'Waiting for the connection' : 'Waiting for the next segment');

/** Explains to a spectator why there is nothing to see. @param {SessionState} state */
export function emptyWords({ phase, segments }) {
  if (phase === 'closed') {
    const text = 'It has been replaced by a new one, or the film is not kept any more. Ask for a new link.';
    return { title: 'This link does not work.', text };
  }
  if (phase === 'complete' && !segments.length) return { title: 'The film has ended.', text: 'It has no segments.' };
  return { title: 'One moment.', text: 'The film begins as soon as there is something to see.' };
}

/** Tells how many people watch. @param {number} count */
export const spectatorWords = (count) => (count ? `${count} ${count === 1 ? 'person is' : 'people are'} watching` : 'Nobody is watching');

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

/** What a screen reader is told of the time that is left, in seconds: not every second, but at these. */
const SPOKEN = [300, 60, 10];

/**
 * Tells how much time the session has left, where the server has told an end: of a session that is idle, of a server that shuts down, or
 * of a session that has ended and can be continued.
 *
 * @param {SessionState} state
 * @param {number} now
 * @returns {?{name: string, left: string, spoken: string}}  `spoken` changes only now and then
 */
export function timeLeftWords(state, now) {
  const end = endOf(state, now);
  const left = end && Math.max(0, Math.ceil((end.at - now) / 1000));
  if (!end || !left) return null;
  const mark = SPOKEN.findLast((seconds) => left <= seconds);
  return { name: end.name, left: clock(left), spoken: mark ? `${end.name} less than ${span(mark)}` : '' };
}

/** @param {SessionState} state @param {number} now */
function endOf(state, now) {
  const { phase, endsAt, drainDeadline, resume, resumableUntil, unixTime } = state;
  if (drainDeadline !== null && isLive(state)) return { name: 'Server stops in', at: drainDeadline };
  if (phase === 'active' && endsAt !== null) return { name: 'Ends in', at: endsAt };
  if (!isLive(state) && resumableUntil !== null && resume && canContinue(state, now)) return { name: 'Can go on for', at: resumableUntil - unixTime };
  return null;
}

/** @typedef {import('./videos/requests.js').Video} Video */

/** Describes what a video job does. @param {Video} job */
export function videoWords(job) {
  const { status, phase, progress, queue_position: place, error } = job;
  switch (status) {
    case 'queued': return place == null ? 'Queued' : place ? `Queued, ${ordinal(place + 1)} in line` : 'Queued, next in line';
    case 'completed': return 'Finished';
    case 'failed': return isCancelled(job) ? 'Cancelled' : `Failed: ${error?.message ?? 'the server does not tell why'}`;
    default:
  }
  const words = { waiting: 'Waiting for a GPU', storing: 'Storing' }[/** @type {string} */ (phase)] ?? 'Generating';
  return `${words}, ${progress}%`;
}

/** Explains why the list of video jobs is not up to date. @param {{message: string, status?: number}} error */
export const listFailureWords = ({ message, status }) => (status === 401 ? 'The server asks for a key.' : sentence(message));

/** Tells that the server has a new video job. @param {Video} job */
export const madeWords = ({ prompt }) => `Taken in: “${prompt}”`;

/** Tells how a video job has ended. @param {Video} job */
export const endWords = (job) => `${videoWords(job)}: “${job.prompt}”`;

/**
 * Explains why a request for a video is refused. The message names the field first, which is left out where the words stand at it.
 *
 * @param {string} message
 * @param {?string} [param]
 */
export function refusalWords(message, param) {
  const name = `\`${param}\`: `;
  return sentence(message.startsWith(name) ? message.slice(name.length) : message);
}

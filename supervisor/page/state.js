// @ts-check
// The state of the page's session as plain data, with functions that derive facts from it. Only the reducer in session.js
// computes new states.

import { MAX_WAITING } from './protocol.js';

/**
 * @typedef {import('./protocol.js').MediaMode} MediaMode
 * @typedef {import('./protocol.js').ResumeToken} ResumeToken
 */

/**
 * In `lost` the page waits to reconnect. In `complete` the session has ended. In `closed` the connection has ended, and only the
 * user can open another one.
 *
 * @typedef {'idle' | 'connecting' | 'queued' | 'binding' | 'active' | 'lost' | 'complete' | 'closed'} Phase
 * @typedef {'denoising' | 'streaming' | 'restarting' | 'interrupted' | 'done' | 'cancelled' | 'failed'} SegmentState
 */

/**
 * A shot of a story.
 *
 * @typedef {{version: string, at: number}} Shot  the version of the story, and the place in it
 */

/**
 * A generated stretch of video.
 *
 * @typedef {object} Segment
 * @property {number} idx
 * @property {SegmentState} state
 * @property {number} start  the position on the player's time line, in seconds
 * @property {number} duration  in seconds; 0 while unknown
 * @property {string} prompt
 * @property {?string} original  the requested prompt, if a language model rewrote it to `prompt`
 * @property {string} source
 * @property {number} attempt  counts from 1
 * @property {number} step
 * @property {number} steps  0 while unknown
 * @property {string} stage
 * @property {number} bytes  as the server has told; 0 while unknown
 * @property {boolean} here  whether all its media were received by this page
 * @property {boolean} [replayed]  whether it was finished before this page received it
 * @property {number} requestedAt
 * @property {?number} firstPictureMs  the time from the request to the first picture
 * @property {?number} generationMs
 * @property {?number} latencyMs
 * @property {?Shot} [shot]  the shot of a story that it shows
 */

/**
 * A picture of a frame that is not ready.
 *
 * @typedef {object} Preview
 * @property {number} idx  the segment
 * @property {number} frame  the frame's position in the segment
 * @property {number} frames  the number of the segment's frames
 * @property {string} src  the picture as a data URL
 */

/**
 * A request for a segment.
 *
 * @typedef {object} Request
 * @property {string} id  the name by which the server's answers refer to it
 * @property {string} prompt
 * @property {import('./protocol.js').PromptRequest} message
 * @property {number} at
 * @property {boolean} sent  whether it was sent over the present connection
 * @property {boolean} [enhance]  whether a language model rewrites it
 * @property {?string} [written]  the prompt that the language model wrote
 * @property {?string} [edit]  the new prompt that was sent and not yet answered
 * @property {number} [idx]  the segment that answers it
 * @property {Shot} [shot]  the shot of a story that it asks for
 */

/**
 * The progress of a reconnect: from the loss of the connection until the session is active again.
 *
 * @typedef {object} Reconnect
 * @property {number} attempt  counts from 1; 0 when the user started it
 * @property {?number} dueAt  the start of this attempt; `null` once it has started
 * @property {boolean} answered  whether the server has answered this attempt
 * @property {string} why  the reason why the attempt before was refused; may be empty
 */

/**
 * A session of this tab, as it is stored for a reload.
 *
 * @typedef {ResumeToken & {waiting?: Request[], asked?: ?Request, outcome?: ?string, position?: number}} Kept
 */

/**
 * What removes a notice: the end of the segment or the beginning of the next one; or the beginning of a segment that was requested after
 * the notice, and the end of any other segment that began after it. A notice with `null` stays.
 *
 * @typedef {?('segment' | 'request')} NoticeEnd
 *
 * @typedef {object} Notice
 * @property {string} title
 * @property {string} text
 * @property {boolean} soft  a warning, and not a failure
 * @property {boolean} reconnect  shows the button that connects
 * @property {boolean} fresh  shows the button that opens a new session instead of resuming
 * @property {NoticeEnd} until  what removes it, besides the user
 * @property {number} at  when it was shown
 */

/**
 * The values of the page's fields.
 *
 * @typedef {object} Settings
 * @property {boolean} enhancement
 * @property {boolean} auto
 * @property {boolean} loop
 * @property {boolean} pause
 * @property {boolean} single
 * @property {boolean} jpeg
 * @property {string} curated  one prompt per line
 */

/**
 * The whole state. Times are in milliseconds of the clock that stamps the events.
 *
 * @typedef {object} SessionState
 * @property {Phase} phase
 * @property {Settings} settings
 * @property {?import('./protocol.js').InitialImage} chosenImage  the initial image for the next new session
 * @property {?import('./protocol.js').ContinuationState} chosenState  the continuation state for the next new session
 * @property {?import('./protocol.js').InitialImage} image  the initial image of this session until its first segment is finished
 * @property {?ResumeToken} resume  the token of the session that is open or can be resumed
 * @property {?Kept} kept  the session that this tab had before a reload
 * @property {boolean} restoring  whether the film of that session is being loaded
 * @property {?number} position  where the viewer was before a reload, in seconds
 * @property {?ResumeToken} left  the token of the session that the user has left
 * @property {?number} resumableUntil  until when the ended session can be continued, in milliseconds of Unix time
 * @property {boolean} extends  whether a session is continued that has ended by its cap
 * @property {?({prompt: string, typed: boolean, sampling: import('./session/transition.js').Sampling}
 *   | {story: import('./session/story.js').Play} | {continued: import('./session/restoring.js').Continued})} asking  what needs another
 *   session, until the user has agreed to it
 * @property {?(import('./session/story.js').Play & {own?: Request[]})} following  the story that begins when the present session has ended,
 *   and the user's own requests that wait behind it
 * @property {boolean} needsKey  whether the server has asked for a key: what waits stays until there is one
 * @property {?number} endsAt  when the session ends because it is idle, as the server has told; null while it is not about to
 * @property {?ResumeToken} filmKey  opens the film that the server keeps; null when it keeps none
 * @property {?Preview} preview  the newest picture of a segment that has no media yet
 * @property {?{idx: number, messages: number}} receiving  the segment whose messages arrive, and how many binary ones are here
 * @property {?{told: number, loading: boolean}} catchingUp  while segments are sent again that were lost with the connection: the next
 *   of them, and whether the film is loaded to learn of those that the server has lost
 * @property {?string} watchToken
 * @property {?number} spectators
 * @property {string} watchNote
 * @property {number} downloaded  the number of segments that the user has saved
 * @property {number} unixTime  what to add to the events' clock for Unix time
 * @property {?Reconnect} reconnect
 * @property {boolean} leaving  whether the user has asked to leave the session
 * @property {?string} outcome  why the session ended: the server's reason, `timeout`, or `taken` over by another connection
 * @property {?number} drainDeadline  when a draining server stops
 * @property {?{title: string, text: string}} refusal  the error that the server sent before it closed the connection
 * @property {?Notice} notice
 * @property {{code: string | number, message: string, retryable?: boolean, at: number}[]} errors  the latest errors
 * @property {?string} sessionId
 * @property {?import('./protocol.js').GpuAssigned} gpu
 * @property {?import('./protocol.js').StreamStart} stream
 * @property {?boolean} hasEnhancer  whether the server has a prompt enhancer, as far as it tells without a session; null while unknown
 * @property {?{position: number, depth: number}} queue
 * @property {boolean} moving  whether a request to move to another GPU is under way
 * @property {MediaMode} requestedMode  the media mode of the last opening message
 * @property {MediaMode} playerMode  the media mode of the session in the player
 * @property {?string} mime  the MIME type of the latest media
 * @property {boolean} holdsLoop  whether loop generation is held back until the waiting prompts were sent
 * @property {Segment[]} segments  in the order of their indices
 * @property {Request[]} waiting  the requests whose segments have not started
 * @property {number} requests  the number of requests so far
 * @property {?Request} asked  the request that the running segment answers
 * @property {number} freeAt  when the last segment ended and the GPU became free
 * @property {number} activeAt  when the session last did something that restarts its idle timeout
 * @property {boolean} starved  whether the player stands because media are missing
 * @property {?{position: number, playing: boolean}} told  what the server was told last of the viewer, over this connection
 * @property {string} curatedNote
 * @property {string} appliedCurated  the curated prompts that the server has
 */

/**
 * Returns the state of a page that was just loaded.
 *
 * @param {?Kept} kept  the session that this tab has stored
 * @param {number} unixTime
 * @returns {SessionState}
 */
export const initialState = (kept = null, unixTime = 0) => ({
  phase: 'idle',
  settings: { enhancement: false, auto: false, loop: false, pause: false, single: false, jpeg: false, curated: '' },
  chosenImage: null,
  chosenState: null,
  image: null,
  resume: null,
  kept,
  restoring: false,
  position: null,
  left: null,
  resumableUntil: null,
  extends: false,
  asking: null,
  following: null,
  needsKey: false,
  endsAt: null,
  filmKey: null,
  preview: null,
  receiving: null,
  catchingUp: null,
  watchToken: null,
  spectators: null,
  watchNote: '',
  downloaded: 0,
  unixTime,
  reconnect: null,
  leaving: false,
  outcome: null,
  drainDeadline: null,
  refusal: null,
  notice: null,
  errors: [],
  sessionId: null,
  gpu: null,
  stream: null,
  hasEnhancer: null,
  queue: null,
  moving: false,
  requestedMode: 'av_fmp4',
  playerMode: 'av_fmp4',
  mime: null,
  holdsLoop: false,
  segments: [],
  waiting: [],
  requests: 0,
  asked: null,
  freeAt: 0,
  activeAt: 0,
  starved: false,
  told: null,
  curatedNote: '',
  appliedCurated: '',
});

/**
 * Returns a segment that has just started.
 *
 * @param {number} idx
 * @param {number} start  in seconds
 * @param {number} now
 * @returns {Segment}
 */
export const newSegment = (idx, start, now) => ({
  idx, start, prompt: '', original: null, source: 'user', attempt: 1, requestedAt: now, bytes: 0, here: false, ...unmade('denoising'),
});

/**
 * Returns the fields of a segment of which nothing was generated.
 *
 * @param {SegmentState} state
 */
export const unmade = (state) => ({
  state, duration: 0, step: 0, steps: 0, stage: 'denoise', firstPictureMs: null, generationMs: null, latencyMs: null,
});

/**
 * Returns the fields of a session of which nothing is here: what another session had is gone.
 *
 * @returns {Partial<SessionState>}
 */
export const emptySession = () => ({
  segments: [], asked: null, mime: null, receiving: null, catchingUp: null, preview: null, filmKey: null, watchToken: null, watchNote: '',
  spectators: null, downloaded: 0, stream: null, gpu: null, resumableUntil: null,
});

/** Tells whether the page has a connection or is about to have one. @param {SessionState} state */
export const isLive = ({ phase }) => ['connecting', 'queued', 'binding', 'active', 'lost'].includes(phase);

/**
 * Tells whether the next prompt goes on with the session that has ended or was lost.
 *
 * @param {SessionState} state
 * @param {number} now
 */
export function canContinue({ resume, resumableUntil, outcome, stream, unixTime }, now) {
  if (!resume || (resumableUntil !== null && unixTime + now >= resumableUntil)) return false;
  return outcome !== 'segment_cap' || (stream?.limits?.max_cap_extensions ?? 0) > 0;
}

/** Tells whether the film would be gone with this page. @param {SessionState} state */
export const isUnsaved = ({ playerMode, filmKey, segments, downloaded }) => (
  playerMode === 'av_fmp4' && !filmKey && segments.filter((s) => s.state === 'done').length > downloaded);

/**
 * Tells whether something would be lost with this page: a film that only the page has, or what is being made and waits to be made.
 *
 * @param {SessionState} state
 */
export const hasUnsaved = (state) => (
  isUnsaved(state) || (isLive(state) && (state.waiting.length > 0 || isUnderWay(current(state)) || current(state)?.state === 'interrupted')));

/** Tells whether a prompt is the user's own, and not the server's choice. @param {import('./protocol.js').PromptSource} source */
export const isOwn = (source) => source === 'user' || source === 'enhanced';

/** Returns the latest segment, in whatever state it is. @param {SessionState} state */
export const current = ({ segments }) => segments.at(-1);

/** Tells whether a worker generates the segment. @param {Segment} [segment] */
export const isRunning = (segment) => segment?.state === 'denoising' || segment?.state === 'streaming';

/** Tells whether the segment is running or restarting. @param {Segment} [segment] */
export const isUnderWay = (segment) => isRunning(segment) || segment?.state === 'restarting';

/** Returns the preview to show: that of the segment whose media are still to come. @param {SessionState} state */
export function shownPreview({ phase, preview, segments, receiving }) {
  const segment = segments.find((s) => s.idx === preview?.idx);
  const awaitsMedia = segment?.state === 'denoising' && receiving?.idx === segment.idx && receiving.messages === 0;
  return phase === 'active' && awaitsMedia ? preview : null;
}

/** Tells whether the page is waiting for a reconnect. @param {SessionState} state */
export const isReconnecting = ({ reconnect }) => reconnect !== null && reconnect.attempt > 0 && !reconnect.answered;

/**
 * The number of segments that the session has finished, also those that it had before this page resumed it.
 *
 * @param {SessionState} state
 */
export function finishedSegments({ stream, segments }) {
  const last = segments.findLast((segment) => segment.state === 'done');
  return Math.max(stream?.next_segment_idx ?? 0, last ? last.idx + 1 : 0);
}

/** Tells whether the server has a continuation state of the session to save. @param {SessionState} state */
export const hasState = (state) => state.phase === 'active' && finishedSegments(state) > 0;

/**
 * Tells whether the server can do something that takes a prompt enhancer. What it does not tell, it is taken to have.
 *
 * @param {SessionState} state
 * @param {'enhancement' | 'auto_extension'} feature
 */
export const hasFeature = ({ stream, hasEnhancer }, feature) => (stream ? stream.features?.[feature] !== false : hasEnhancer !== false);

/** The number of requests that may wait at once: what the server says, or else its default. @param {SessionState} state */
export const maxWaiting = ({ stream }) => stream?.limits?.max_waiting_requests ?? MAX_WAITING;

/** Tells whether the server has other curated prompts than the form. @param {SessionState} state */
export const canApply = ({ phase, settings, appliedCurated }) => phase === 'active' && settings.curated !== appliedCurated;

/** Returns the curated prompts as a list. @param {Settings} settings */
export const curatedPrompts = ({ curated }) => curated.split('\n').map((line) => line.trim()).filter(Boolean);

// @ts-check
// The segments of a session, from their start to their end, and their media.

import { isOwn, isRunning, newSegment, unmade } from '../state.js';
import { caughtUp, closeGaps, isRecorded, sentAgain } from './film.js';
import { sendWaiting } from './prompts.js';

/**
 * @typedef {import('./transition.js').Transition} Transition
 * @typedef {import('../state.js').Segment} Segment
 */

/** @param {Transition} next @param {import('../protocol.js').SegmentStart} message */
export function segmentStart(next, message) {
  const { state } = next;
  const { segment_idx: idx, attempt = 1, replayed = false } = message;
  const known = state.segments.find((s) => s.idx === idx);
  if (replayed) {
    segmentSentAgain(next, message, known);
    return;
  }
  if (state.catchingUp) caughtUp(next);
  closeGaps(next, idx);
  const before = state.segments.findLast((s) => s.idx < idx);
  const start = before ? before.start + before.duration : known?.start ?? 0;
  // An index is used again after a failure, a cancellation or a lost connection. A retry gives the same pictures.
  const again = known !== undefined && (attempt > 1 || (known.state === 'interrupted' && message.prompt === known.prompt));
  if (known) next.run({ type: 'void_media', idx, from: start, again });
  /** @type {Segment} */
  const segment = {
    ...newSegment(idx, start, again ? known.requestedAt : next.now),
    prompt: message.prompt,
    original: message.original_prompt ?? null,
    source: message.source ?? 'user',
    attempt,
    steps: message.total_steps,
    ...(again && known.shot && { shot: known.shot }),
  };
  put(next, segment);
  Object.assign(state, { receiving: { idx, messages: 0 }, preview: null, endsAt: null });
  if (attempt === 1) takeRequest(next, segment, message.request_id);
}

/** Puts a segment into its place. @param {Transition} next @param {Segment} segment */
function put({ state }, segment) {
  const others = state.segments.filter((s) => s.idx !== segment.idx);
  const at = others.findLastIndex((s) => s.idx < segment.idx) + 1;
  state.segments = [...others.slice(0, at), segment, ...others.slice(at)];
}

/**
 * A finished segment is sent again, since the page lacks media of it. What is here of it is not sent again.
 *
 * @param {Transition} next
 * @param {import('../protocol.js').SegmentStart} message
 * @param {Segment} [known]
 */
function segmentSentAgain(next, message, known) {
  const { state } = next;
  const { segment_idx: idx } = message;
  closeGaps(next, idx);
  const request = state.waiting.find((r) => r.id === message.request_id);
  state.waiting = state.waiting.filter((r) => r !== request);
  const shot = request?.shot ?? known?.shot;
  const goesOn = known && !known.here && state.receiving?.idx === idx && state.receiving.messages > 0;
  if (known?.state === 'done' && known.here) {
    state.receiving = null; // all of it is here
  } else if (goesOn) {
    next.change(idx, { state: 'streaming' });
  } else {
    const before = state.segments.findLast((s) => s.idx < idx);
    const start = known?.start ?? (before ? before.start + before.duration : 0);
    put(next, {
      ...newSegment(idx, start, next.now), state: 'streaming', prompt: message.prompt, original: message.original_prompt ?? null,
      source: message.source ?? 'user', attempt: message.attempt ?? 1, steps: message.total_steps, step: message.total_steps,
      duration: known?.duration ?? 0, bytes: known?.bytes ?? 0, replayed: true, ...(shot && { shot }),
    });
    if (known) next.run({ type: 'refill_media', idx });
    state.receiving = { idx, messages: 0 };
  }
  sentAgain(next, idx);
}

/** Returns the segment whose messages arrive. @param {import('../state.js').SessionState} state */
const receivingSegment = ({ segments, receiving }) => segments.find((s) => s.idx === receiving?.idx);

/**
 * Finds the request that the segment answers. Its latency counts from the request, or from when the GPU became free for it.
 *
 * @param {Transition} next
 * @param {Segment} segment
 * @param {string} [id]  the request that the server has named
 */
function takeRequest(next, segment, id) {
  const { state } = next;
  const prompt = segment.original ?? segment.prompt;
  const source = /** @type {import('../protocol.js').PromptSource} */ (segment.source);
  const mine = isOwn(source);
  const named = state.waiting.findIndex((request) => request.id === id);
  const alike = state.waiting.findIndex((request) => request.prompt === prompt && (mine ? isOwn(request.message.source) : request.message.source === source));
  const found = named >= 0 ? named : alike;
  const at = mine ? Math.max(0, found) : found;
  const request = state.waiting[at];
  passNotice(next, request);
  if (request) {
    state.waiting = state.waiting.filter((other) => other !== request);
    next.change(segment.idx, { requestedAt: Math.max(request.at, state.freeAt), ...(request.shot && { shot: request.shot }) });
  }
  const asked = request ?? unnamed(prompt, mine ? 'user' : source, next.now);
  state.asked = { ...asked, idx: segment.idx };
  sendWaiting(next);
}

/**
 * A request that this page does not know of.
 *
 * @param {string} prompt
 * @param {import('../protocol.js').PromptSource} source
 * @param {number} now
 * @returns {import('../state.js').Request}
 */
const unnamed = (prompt, source, now) => ({ id: '', prompt, message: { type: 'segment_prompt_source', prompt, source }, at: now, sent: true });

/**
 * Removes what a segment that begins is news to. A notice about a request stays for the segment of another one that waited already:
 * it would be gone before it is read.
 *
 * @param {Transition} next
 * @param {import('../state.js').Request} [request]  the one that the segment answers
 */
function passNotice({ state }, request) {
  const { notice } = state;
  if (!notice?.until) return;
  const isNewer = request !== undefined && request.at >= notice.at;
  state.notice = notice.until === 'segment' || isNewer ? null : { ...notice, until: 'segment' };
}

/** @param {Transition} next @param {import('../protocol.js').StepComplete} message */
export function stepComplete(next, message) {
  const segment = receivingSegment(next.state);
  if (!segment) return;
  next.change(segment.idx, {
    step: message.step,
    steps: message.total_steps,
    stage: message.stage ?? 'denoise',
    state: isRunning(segment) ? segment.state : 'denoising',
  });
}

/** Keeps the newest preview of the segment whose media are to come. @param {Transition} next @param {import('../protocol.js').Preview} message */
export function preview(next, { segment_idx: idx, frame, num_frames: frames, jpeg }) {
  const { state } = next;
  if (receivingSegment(state)?.idx !== idx || state.receiving?.messages) return;
  state.preview = { idx, frame, frames, src: `data:image/jpeg;base64,${jpeg}` };
}

/** @param {Transition} next @param {import('../protocol.js').MediaInit} message */
export function mediaInit(next, { mime }) {
  const segment = receivingSegment(next.state);
  if (!segment) return;
  next.state.mime = mime;
  next.run({ type: 'start_media', idx: segment.idx, mime });
}

/** @param {Transition} next @param {Uint8Array} bytes */
export function addMedia(next, bytes) {
  const { state } = next;
  const { receiving } = state;
  const segment = receivingSegment(state);
  if (!segment || !receiving) return;
  const messages = receiving.messages + 1;
  state.receiving = { ...receiving, messages };
  state.preview = null;
  const pictureAt = state.playerMode === 'legacy_jpeg' ? 1 : 2; // the first message of MP4 is the init segment
  next.run({ type: 'add_media', idx: segment.idx, bytes, picture: messages === pictureAt && !segment.replayed });
  if (segment.state !== 'streaming') next.change(segment.idx, { state: 'streaming' });
}

/** @param {Transition} next @param {{idx: number, start: number}} picture  `start` is where the player's video begins */
export function firstPicture(next, { idx, start }) {
  const { state } = next;
  const segment = state.segments.find((s) => s.idx === idx);
  if (!segment) return;
  const first = segment === state.segments[0] && state.playerMode === 'av_fmp4';
  next.change(idx, { firstPictureMs: next.now - segment.requestedAt, ...(first && { start }) });
}

/** @param {Transition} next @param {import('../protocol.js').MediaSegmentComplete} message */
export function mediaSegmentComplete(next, { duration_ms, pts_base_ms }) {
  const segment = receivingSegment(next.state);
  if (!segment) return;
  const placed = next.state.playerMode === 'av_fmp4' && pts_base_ms != null;
  next.change(segment.idx, { duration: duration_ms / 1000, ...(placed && { start: pts_base_ms / 1000 }) });
}

/** @param {Transition} next @param {import('../protocol.js').SegmentComplete} message */
export function segmentComplete(next, message) {
  const { segment_idx: idx } = message;
  const { state } = next;
  const { receiving } = state;
  if (receiving?.idx !== idx) return;
  const { replayed } = state.segments.find((s) => s.idx === idx) ?? {};
  next.change(idx, { generationMs: message.generation_time_ms, ...(!replayed && { latencyMs: message.e2e_latency_ms }) });
  finishSegment(next, idx);
  if (isRecorded(state)) {
    // It is no activity of the user.
    next.run({ type: 'send', message: { type: 'media_received', segment_idx: idx, messages: receiving.messages } });
  }
}

/** @param {Transition} next @param {import('../protocol.js').SegmentCancelled} message */
export function segmentCancelled(next, { segment_idx: idx }) {
  const { state } = next;
  const segment = state.segments.find((s) => s.idx === idx);
  if (!segment) return;
  next.run({ type: 'void_media', idx, from: segment.start, again: false });
  next.change(idx, unmade('cancelled'));
  Object.assign(state, { asked: null, freeAt: next.now, preview: null });
}

/** Marks a segment as done. @param {Transition} next @param {number} idx */
export function finishSegment(next, idx) {
  const { state } = next;
  next.change(idx, { state: 'done', here: true });
  Object.assign(state, { asked: state.asked?.idx === idx ? null : state.asked, image: null, freeAt: next.now });
  next.run({ type: 'finish_media', idx });
  if (state.notice?.until === 'segment') state.notice = null;
}

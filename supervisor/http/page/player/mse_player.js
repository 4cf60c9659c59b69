// @ts-check
// Plays fragmented MP4 through Media Source Extensions. It owns the buffer: the film says what media there are, the plan what of
// them is buffered, and the watchdog how a player goes on that stands.

import { planBuffer, LIMITS, isInside, overlap } from './plan.js';
import { Detached, SourceWriter } from './source_writer.js';
import { AT_END, rescue, Watchdog } from './watchdog.js';

const TICK_MS = 200;
/** Media sources that fail one after the other within this time end the player, in milliseconds. */
const RECOVERY_WINDOW_MS = 20_000;
const MAX_RECOVERIES = 4;
/** A browser that takes less than this cannot hold a segment. */
const MIN_BUFFER_BYTES = 4 * 1024 * 1024;
/** Removing up to the first picture of a segment removes all of it, however the browser rounds its time. */
const BEFORE = 0.01;
/** A segment of which the browser has removed this much by itself is appended again, in seconds. */
const EVICTED = 0.2;

const RELOAD = 'Reload the page to go on with the session.';

/**
 * What the buffer has of a segment.
 *
 * @typedef {object} Fed
 * @property {number} count  the parts that were appended
 * @property {number} bytes
 * @property {boolean} whole
 * @property {number} seconds  how much of a whole segment the buffer had
 *
 * @typedef {{failed: (text: string) => void}} Hooks
 */

export class MsePlayer {
  /** @param {HTMLVideoElement} video @param {import('../film.js').Film} film @param {Hooks} hooks */
  constructor(video, film, hooks) {
    this.video = video;
    this.film = film;
    this.hooks = hooks;
    this.stalls = 0;
    this.watchdog = new Watchdog();
    /** @type {?SourceWriter} */
    this.writer = null;
    video.disableRemotePlayback = true; // a ManagedMediaSource does not open otherwise
    video.addEventListener('waiting', () => this.waiting());
    video.addEventListener('loadeddata', () => { this.shown = true; });
    video.addEventListener('playing', () => { this.started = this.bufferEnd > 0; });
    video.addEventListener('seeking', () => this.wake()); // also by the browser, to the start of a video that had ended
    video.addEventListener('error', () => { if (this.writer && video.error) this.recover(video.error); });
    this.limits = LIMITS;
    this.shown = this.started = this.dead = this.finished = false;
    this.playing = true;
    this.nudges = 0;
    this.again = this.full = false;
    this.countFrames();
    this.reset();
    setInterval(() => this.tick(performance.now()), TICK_MS);
  }

  get time() { return this.target ?? this.video.currentTime; }
  get paused() { return !this.playing; }
  get bufferEnd() { return this.ranges().at(-1)?.[1] ?? 0; }
  get end() { return this.writer ? Math.max(this.bufferEnd, this.film.end) : 0; }
  get atEnd() { return this.end - this.time < AT_END; }
  get hasPicture() { return this.shown && this.end > 0; } // also during a seek
  /** Whether playback stands because media are missing. */
  get starved() {
    const { video } = this;
    return this.playing && this.started && !video.ended && (this.target !== null || (!video.seeking && (this.atEnd || video.readyState < 3)));
  }

  get picture() { return this.video; }

  /** @returns {import('./plan.js').Range[]} */
  ranges() {
    const b = this.video.buffered;
    return Array.from({ length: b.length }, (_, i) => [b.start(i), b.end(i)]);
  }

  /** Forgets the session. */
  reset() {
    this.detach();
    this.limits = LIMITS;
    /** @type {?number} */
    this.target = null; // a position to seek to once it has media: browsers ignore a seek to where there are none
    this.shown = this.started = this.dead = this.finished = false;
    this.playing = true;
    /** @type {number[]} */
    this.recoveries = []; // when they were
    /** @type {Map<number, number>} */
    this.failures = new Map(); // of segments whose media the browser could not read
    /** @type {{idx: number, count: number, done: () => void}[]} */
    this.awaited = [];
    if (this.video.hasAttribute('src')) {
      this.video.removeAttribute('src');
      this.video.load();
    }
  }

  detach() {
    this.writer?.detach();
    this.writer = null;
    /** @type {Map<number, Fed>} */
    this.fed = new Map();
    /** @type {?{idx: number, parts: Uint8Array<ArrayBuffer>[], at: number}} */
    this.feeding = null;
    /** @type {?SourceWriter} */
    this.running = null;
    this.again = this.full = false;
    /** @type {{from: number}[]} */
    this.cuts = [];
    this.nudges = 0;
    this.watchdog.reset();
  }

  /** Creates the media source before the first media arrive, so that it is open by then. */
  open() {
    this.finished = false;
    if (this.writer || this.dead) return;
    const Source = window.MediaSource ?? /** @type {any} */ (window).ManagedMediaSource;
    if (!Source) {
      this.fail('This browser cannot play streamed MP4. Choose JPEG frames and open a new session.');
      return;
    }
    this.Source = Source;
    const writer = new SourceWriter(this.video, Source, () => { if (writer === this.writer) this.recover('the source was closed'); });
    this.writer = writer;
    this.wake();
  }

  /** Reports a text for the viewer; the cause is for the console. @param {string} text @param {unknown} [cause] */
  fail(text, cause = null) {
    if (this.dead) return; // only the first failure is reported
    this.dead = true;
    if (cause) console.warn(text, cause);
    this.hooks.failed(text);
  }

  // --- the film has changed ---

  /** @param {number} _idx @param {string} mime */
  startSegment(_idx, mime) {
    this.open();
    if (this.writer && !this.Source.isTypeSupported(mime)) {
      this.fail('This browser cannot play its format. Choose JPEG frames and open a new session.', mime);
    }
  }

  /** The film has another message. @param {number} idx @param {(() => void) | null} [done]  is called when it was appended */
  added(idx, done) {
    if (done) this.awaited.push({ idx, count: this.film.growing(idx)?.length ?? 0, done });
    this.wake();
  }

  /**
   * Removes the segment's media from `from` seconds on. With `hold` the playback waits there, since the same pictures follow.
   *
   * @param {number} idx
   * @param {number} from
   * @param {boolean} hold
   */
  cut(idx, from, hold) {
    this.awaited = this.awaited.filter((wanted) => wanted.idx !== idx);
    this.failures.delete(idx);
    for (const other of this.fed.keys()) if (other >= idx) this.fed.delete(other);
    if (this.feeding && this.feeding.idx >= idx) this.feeding = null;
    const { time } = this;
    this.cuts.push({ from });
    if (time > from) {
      this.goTo(hold ? time : Math.max(0, from - 0.05));
      this.video.pause();
    }
    this.wake();
  }

  /** The same media of a segment follow once more, from its beginning. @param {number} idx */
  refill(idx) {
    if (this.fed.get(idx)?.whole) return;
    this.fed.delete(idx);
    if (this.feeding?.idx === idx) this.feeding = null;
  }

  /** No more media will come. */
  finish() {
    this.finished = true;
    this.wake();
  }

  // --- feeding the buffer ---

  wake() {
    this.again = true;
    const { writer } = this;
    if (!writer || this.dead || this.running === writer) return;
    this.running = writer;
    this.feed(writer).catch((error) => {
      if (writer === this.writer && !(error instanceof Detached)) this.recover(error);
    }).finally(() => { if (this.running === writer) this.running = null; });
  }

  /** Brings the buffer to what is planned. @param {SourceWriter} writer */
  async feed(writer) {
    while (this.again) {
      this.again = false;
      while (writer === this.writer && !this.dead && await this.step(writer)) this.settle();
    }
    if (writer !== this.writer || this.dead) return;
    this.settle();
    this.flush();
    const last = this.spans().at(-1);
    if (this.finished && last && !last.more && (last.buffered || !this.isComing(this.place(last.idx)))) writer.end();
  }

  /** Does one thing. @param {SourceWriter} writer @returns {Promise<boolean>} whether there may be more to do */
  async step(writer) {
    const cut = this.cuts.at(0);
    if (cut) {
      await writer.remove(cut.from, Infinity);
      this.cuts = this.cuts.filter((other) => other !== cut);
      return true;
    }
    if (this.full) return false;
    const { append, remove } = planBuffer(this.spans(), this.time, this.limits);
    if (remove) {
      this.fed.delete(remove.idx);
      if (this.feeding?.idx === remove.idx) this.feeding = null;
      await writer.remove(remove.start - BEFORE, remove.end - BEFORE);
      return true;
    }
    return append !== null && this.appendPart(writer, append.idx);
  }

  /** Appends the next part of a segment. @param {SourceWriter} writer @param {number} idx @returns {Promise<boolean>} */
  async appendPart(writer, idx) {
    const growing = this.film.growing(idx);
    const atServer = this.film.isAtServer(this.place(idx)) && this.film.isDue(idx);
    if (this.feeding?.idx !== idx || (atServer && this.feeding.parts === growing)) {
      // Every segment is appended from its init segment on, also when another one came between its parts.
      this.fed.delete(idx);
      this.feeding = null;
      const parts = growing && !atServer ? growing : await this.film.load(idx);
      if (writer === this.writer && parts) this.feeding = { idx, parts, at: 0 };
      return true; // what cannot be had is not asked for again at once
    }
    const { feeding } = this;
    if (feeding.at === feeding.parts.length) { // it has been finished meanwhile
      this.noteFed(feeding);
      return feeding.parts !== growing;
    }
    try {
      if (feeding.at === 0) await writer.begin(this.film.mimeOf(idx) ?? '');
      await writer.append(feeding.parts[feeding.at]);
    } catch (error) {
      if (writer !== this.writer) return false;
      if (/** @type {any} */ (error).name === 'QuotaExceededError') return this.shrink();
      this.failures.set(idx, (this.failures.get(idx) ?? 0) + 1);
      throw error;
    }
    if (this.feeding !== feeding) return true; // it was cut meanwhile
    feeding.at += 1;
    this.noteFed(feeding);
    return true;
  }

  /** @param {NonNullable<MsePlayer['feeding']>} feeding */
  noteFed({ idx, parts, at }) {
    const whole = at === parts.length && parts !== this.film.growing(idx);
    const { start, duration } = this.place(idx);
    const bytes = parts.slice(0, at).reduce((sum, part) => sum + part.byteLength, 0);
    this.fed.set(idx, { count: at, bytes, whole, seconds: overlap(this.ranges(), start, start + duration) });
    if (whole) this.feeding = null;
    this.awaited = this.awaited.filter((wanted) => {
      if (wanted.idx !== idx || wanted.count > at) return true;
      wanted.done();
      return false;
    });
  }

  /** The browser takes no more: its buffer is smaller than was thought. @returns {boolean} whether something can be removed */
  shrink() {
    const spans = this.spans().filter((span) => span.buffered);
    const bytes = spans.reduce((sum, span) => sum + span.bytes, 0);
    this.limits = { ...this.limits, bytes: Math.max(MIN_BUFFER_BYTES, Math.min(this.limits.bytes, 0.8 * bytes)) };
    if (planBuffer(this.spans(), this.time, this.limits).remove) return true;
    this.full = true; // until the next tick
    return false;
  }

  /** What was to be told of messages is told also when the buffer has no room for them yet. */
  flush() {
    const { awaited } = this;
    this.awaited = [];
    for (const { done } of awaited) done();
  }

  /** @param {number} idx */
  place(idx) {
    return this.film.places.find((place) => place.idx === idx) ?? { idx, state: 'streaming', start: 0, duration: 0 };
  }

  /** @returns {import('./plan.js').Span[]} */
  spans() {
    const ranges = this.ranges();
    return this.film.places.flatMap((place) => {
      const { idx, start, duration } = place;
      const fed = this.fed.get(idx);
      if (fed?.whole && overlap(ranges, start, start + duration) < fed.seconds - EVICTED) this.fed.delete(idx); // by the browser
      const growing = this.film.growing(idx);
      const here = growing?.length || this.film.isWhole(idx);
      const atServer = this.film.isAtServer(place);
      if (!here && !atServer && !duration) return [];
      const bytes = this.film.media.get(idx)?.bytes || place.bytes || fed?.bytes || 0;
      const end = duration ? start + duration : Infinity;
      return [{ idx, start, end, bytes, buffered: this.fed.has(idx), more: this.hasMore(idx, growing, atServer) }];
    });
  }

  /** @param {number} idx @param {?Uint8Array[]} growing @param {boolean} atServer */
  hasMore(idx, growing, atServer) {
    const fed = this.fed.get(idx);
    if (fed?.whole || (this.failures.get(idx) ?? 0) >= 2) return false;
    if (atServer && this.film.isDue(idx)) return true;
    if (this.film.isWhole(idx)) return true;
    return (growing?.length ?? 0) > (this.feeding?.idx === idx ? this.feeding.at : fed?.count ?? 0);
  }

  // --- playing ---

  /** Takes the viewer to where there are media now, and plays. */
  settle() {
    const { video } = this;
    const ranges = this.ranges();
    if (!ranges.length || this.cuts.length) return;
    if (!this.started && this.target === null && !isInside(ranges, video.currentTime)) video.currentTime = ranges[0][0];
    if (this.target !== null && isInside(ranges, this.target)) {
      // The seek makes the decoder start at the new keyframe. Without it Chromium waits for that of the next segment.
      video.currentTime = this.target;
      this.target = null;
      this.watchdog.reset();
    }
    if (this.playing && this.target === null && video.paused && !video.ended) this.resume();
  }

  resume() {
    this.video.play().catch((error) => {
      if (error.name !== 'NotAllowedError' || this.video.muted) return;
      this.video.muted = true;
      this.video.play().catch(() => {});
    });
  }

  play() {
    this.playing = true;
    if (this.video.ended) this.seek(this.film.places[0]?.start ?? 0);
    else if (this.target === null) this.resume();
  }

  pause() {
    this.playing = false;
    this.video.pause();
  }

  /** Seeks to a position in seconds. What is missing there is appended, and playback waits for it. @param {number} to */
  seek(to) {
    this.goTo(to);
    this.settle();
    this.wake();
  }

  /** @param {number} to */
  goTo(to) {
    this.target = to;
    this.nudges = 0;
    this.watchdog.reset();
    if (!isInside(this.ranges(), to)) this.video.pause();
  }

  // --- staying alive ---

  /** Is called periodically: whatever makes the player wait is looked at again here. @param {number} now */
  tick(now) {
    const { video, writer } = this;
    if (!writer || this.dead) return;
    this.full = false;
    this.wake();
    const time = this.time;
    const { stuckMs, frozenMs } = this.watchdog.observe({
      now, time, frames: document.hidden ? null : this.frames,
      playing: this.playing && !video.ended && (this.started || this.target !== null),
    });
    if (stuckMs === 0 && frozenMs === 0) this.nudges = 0;
    const place = this.film.places.findLast(({ start }) => start <= time + 0.05);
    const ranges = this.ranges();
    const action = rescue({
      time, ranges, stuckMs, frozenMs, nudges: this.nudges, seeking: video.seeking, hidden: document.hidden,
      coming: place !== undefined && time < this.endOf(place) && this.isComing(place),
      streaming: place?.state === 'streaming' && !place.duration,
    });
    if (action.type === 'none') return;
    if (action.type === 'reattach') {
      this.recover('playback stands');
      return;
    }
    const { nudges } = this;
    this.goTo(action.to);
    this.nudges = nudges + 1;
    this.settle();
  }

  /** @param {import('../film.js').Place} place */
  endOf(place) {
    return place.duration ? place.start + place.duration - AT_END : Infinity;
  }

  /** Tells whether media of a segment may still come that are not in the buffer. @param {import('../film.js').Place} place */
  isComing(place) {
    if (this.fed.get(place.idx)?.whole || (this.failures.get(place.idx) ?? 0) >= 2) return false;
    return this.film.isWhole(place.idx) || this.film.isAtServer(place) || ['denoising', 'streaming', 'restarting', 'interrupted'].includes(place.state);
  }

  /** Replaces the media source, and goes on at the same position. @param {unknown} cause */
  recover(cause) {
    const now = performance.now();
    this.recoveries = [...this.recoveries.filter((at) => now - at < RECOVERY_WINDOW_MS), now];
    if (this.recoveries.length > MAX_RECOVERIES) {
      this.fail(`The browser could not play it. ${RELOAD}`, cause);
      return;
    }
    console.info('The player starts anew.', cause);
    const { time, playing } = this;
    const next = this.film.places.find(({ start }) => start > time);
    this.detach();
    // What fails twice at the same place is left out.
    this.target = this.recoveries.length > 2 && next ? next.start : time;
    this.playing = playing;
    const { finished } = this;
    this.open();
    this.finished = finished;
  }

  waiting() {
    const { video } = this;
    // The event is delayed: the player may have recovered already, or may not have started yet.
    if (!this.started || video.seeking || video.readyState !== 2 || this.atEnd || this.target !== null) return;
    this.stalls += 1;
  }

  /** Counts the pictures that are shown. */
  countFrames() {
    const { video } = this;
    /** @type {?number} */
    this.shownFrames = null;
    if (!video.requestVideoFrameCallback) return;
    this.shownFrames = 0;
    const count = () => {
      this.shownFrames = (this.shownFrames ?? 0) + 1;
      video.requestVideoFrameCallback(count);
    };
    video.requestVideoFrameCallback(count);
  }

  /** @returns {?number} */
  get frames() {
    return this.shownFrames ?? this.video.getVideoPlaybackQuality?.().totalVideoFrames ?? null;
  }
}

// @ts-check
// Plays fragmented MP4 through Media Source Extensions: the feeder keeps the buffer, the watchdog notices a player that stands, and
// a media source that has failed is replaced by another one.

import { Feeder } from './feeder.js';
import { isInside } from './plan.js';
import { SourceWriter } from './source_writer.js';
import { AT_END, rescue, Watchdog } from './watchdog.js';

const TICK_MS = 200;
/** More media sources than these that fail within this time end the player. */
const MAX_RECOVERIES = 6;
const RECOVERY_WINDOW_MS = 20_000;
/** Failures this close to each other, in seconds, are of the same media. */
const SAME_PLACE = 0.5;

/** @typedef {{failed: (text: string) => void}} Hooks  `failed` is called with a text for the viewer */

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
    /** @type {?number} */
    this.target = null; // a position to seek to once it has media: browsers ignore a seek to where there are none
    /** @type {{at: number, time: number}[]} */
    this.recoveries = []; // when they were, and where
    this.nudges = 0;
    this.playing = true;
    this.shown = this.started = this.dead = false;
    this.feeder = new Feeder(film, this);
    /** @type {any} */
    this.Source = null; // `MediaSource` or `ManagedMediaSource`
    video.disableRemotePlayback = true; // a ManagedMediaSource does not open otherwise
    video.addEventListener('waiting', () => this.waiting());
    video.addEventListener('loadeddata', () => { this.shown = true; });
    video.addEventListener('playing', () => { this.started = this.bufferEnd > 0; });
    video.addEventListener('seeking', () => this.wake()); // also by the browser, to the start of a video that had ended
    video.addEventListener('error', () => { if (this.writer && video.error) this.recover(video.error, this.feeder.blameUnderWay()); });
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
    if (!this.playing || !this.started || video.ended) return false;
    return this.target !== null || (!video.seeking && (this.atEnd || video.readyState < 3));
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
    this.feeder.reset();
    this.target = null;
    this.shown = this.started = this.dead = false;
    this.playing = true;
    this.recoveries = [];
    if (this.video.hasAttribute('src')) {
      this.video.removeAttribute('src');
      this.video.load();
    }
  }

  detach() {
    this.writer?.detach();
    this.writer = null;
    this.feeder.attach(null);
    this.nudges = 0;
    this.watchdog.reset();
  }

  /** Creates the media source before the first media arrive, so that it is open by then. */
  open() {
    this.feeder.finished = false;
    if (this.writer || this.dead) return;
    const Source = window.MediaSource ?? /** @type {any} */ (window).ManagedMediaSource;
    if (!Source) {
      this.fail('This browser cannot play streamed MP4. Choose JPEG frames and open a new session.');
      return;
    }
    this.Source = Source;
    const writer = new SourceWriter(this.video, Source, () => { if (writer === this.writer) this.recover('the source was closed'); });
    this.writer = writer;
    this.feeder.attach(writer);
    this.feeder.wake();
  }

  /** Reports a text for the viewer; the cause is for the console. @param {string} text @param {unknown} [cause] */
  fail(text, cause = null) {
    if (this.dead) return; // only the first failure is reported
    this.dead = true;
    this.feeder.attach(null);
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
    this.feeder.added(idx, done);
  }

  /**
   * Removes the segment's media from `from` seconds on. With `hold` the playback waits there, since the same pictures follow.
   *
   * @param {number} idx
   * @param {number} from
   * @param {boolean} hold
   */
  cut(idx, from, hold) {
    const { time } = this;
    if (time > from) {
      this.goTo(hold ? time : Math.max(0, from - 0.05));
      this.video.pause();
    }
    this.feeder.cut(idx, from);
  }

  /** The same media of a segment follow once more, from its beginning. @param {number} idx */
  refill(idx) {
    this.feeder.refill(idx);
  }

  /** No more media will come. */
  finish() {
    this.feeder.finished = true;
    this.wake();
  }

  wake() {
    this.feeder.wake();
  }

  // --- playing ---

  /** Takes the viewer to where there are media now, and plays. */
  settle() {
    const { video } = this;
    const ranges = this.ranges();
    if (!ranges.length || this.feeder.cuts.length) return;
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
    const { video } = this;
    if (!this.writer || this.dead) return;
    this.feeder.retry();
    const { time } = this;
    const { stuckMs, frozenMs } = this.watchdog.observe({
      now, time, frames: document.hidden ? null : this.frames,
      playing: this.playing && !video.ended && (this.started || this.target !== null),
    });
    if (stuckMs === 0 && frozenMs === 0) this.nudges = 0;
    const place = this.film.places.findLast(({ start }) => start <= time + 0.05);
    const end = place?.duration ? place.start + place.duration - AT_END : Infinity;
    const action = rescue({
      time, ranges: this.ranges(), stuckMs, frozenMs, nudges: this.nudges, seeking: video.seeking, hidden: document.hidden,
      coming: place !== undefined && time < end && this.feeder.isComing(place),
      streaming: place?.state === 'streaming' && !place.duration,
    });
    if (action.type === 'reattach') {
      this.recover('playback stands');
    } else if (action.type !== 'none') {
      const { nudges } = this;
      this.goTo(action.to);
      this.nudges = nudges + 1;
      this.settle();
    }
  }

  /**
   * Replaces the media source, and goes on at the same position. What cannot be played there is left out the second time.
   *
   * @param {unknown} cause
   * @param {boolean} [elsewhere]  whether the fault lies in media that are not played yet
   */
  recover(cause, elsewhere = false) {
    if (this.dead) return;
    const at = performance.now();
    const { time } = this;
    const recent = this.recoveries.filter((other) => at - other.at < RECOVERY_WINDOW_MS);
    const again = !elsewhere && recent.some((other) => Math.abs(other.time - time) < SAME_PLACE);
    this.recoveries = [...recent, { at, time: elsewhere ? NaN : time }];
    if (this.recoveries.length > MAX_RECOVERIES) {
      this.fail('The browser could not play it. Reload the page to go on with the session.', cause);
      return;
    }
    console.info('The player starts anew.', cause);
    const { finished } = this.feeder;
    const next = this.film.places.find(({ start }) => start > time);
    this.detach();
    this.target = again && next ? next.start : time;
    this.open();
    this.feeder.finished = finished;
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
      this.shown = true; // Chromium tells `loadeddata` only with the second fragment
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

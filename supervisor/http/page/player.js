// The two players: Media Source Extensions for fragmented MP4, and a canvas for JPEG frames. Both have the same interface.

/** How often a full buffer is tried again, in milliseconds: while the viewer has paused, it may stay full for hours. */
const FULL_RETRY_MS = 500;

/** Plays fragmented MP4 through Media Source Extensions. All changes of the source buffer go through one queue. */
export class MsePlayer {
  constructor(video, hooks) {
    this.video = video;
    this.hooks = hooks;
    this.stalls = 0;
    video.disableRemotePlayback = true; // a ManagedMediaSource does not open otherwise
    video.addEventListener('waiting', () => this.waiting());
    video.addEventListener('loadeddata', () => { this.shown = true; });
    video.addEventListener('playing', () => { this.started = this.end > 0; });
    video.addEventListener('error', () => {
      if (this.source) this.fail('The browser could not play it. Reload the page to go on with the session.', video.error);
    });
    this.reset();
  }

  get time() { return this.video.currentTime; }
  get paused() { return !this.playing; }
  get end() { return this.video.buffered.length ? this.video.buffered.end(this.video.buffered.length - 1) : 0; }
  get atEnd() { return this.end - this.time < 0.12; }
  get hasPicture() { return this.shown && this.end > 0; } // also during a seek
  /** Whether playback stands because media are missing. */
  get starved() {
    return this.playing && this.started && !this.video.ended && !this.video.seeking && (this.atEnd || this.video.readyState < 3);
  }

  get picture() { return this.video; }
  ranges() {
    const b = this.video.buffered;
    return Array.from({ length: b.length }, (_, i) => [b.start(i), b.end(i)]);
  }

  reset() {
    if (this.url) URL.revokeObjectURL(this.url);
    clearTimeout(this.full);
    this.full = null; // the timer that tries again while the buffer is full
    this.source = this.buffer = this.url = null;
    this.queue = [];
    this.onUpdated = null;
    this.resumeAt = null;
    this.shown = this.started = this.dead = false;
    this.holed = false; // media were lost and will not be sent again, so that playback may skip the gap
    this.playing = true;
    if (this.video.hasAttribute('src')) {
      this.video.removeAttribute('src');
      this.video.load();
    }
  }

  /** Creates the media source before the first media arrive, so that it is open by then. */
  open() {
    if (this.source) return;
    const Source = window.MediaSource ?? window.ManagedMediaSource;
    if (!Source) {
      this.fail('This browser cannot play streamed MP4. Choose JPEG frames and open a new session.');
      return;
    }
    const source = new Source();
    source.addEventListener('sourceopen', () => this.pump());
    this.source = source;
    this.url = URL.createObjectURL(source);
    this.video.src = this.url;
  }

  /** Reports a text for the viewer; the cause is for the console. */
  fail(text, cause = null) {
    if (this.dead) return; // only the first failure is reported
    this.dead = true;
    this.queue = [];
    if (cause) console.warn(text, cause);
    this.hooks.failed(text);
  }

  startSegment(segment, mime) {
    this.open();
    if (!this.source) return;
    if (!this.source.constructor.isTypeSupported(mime)) {
      this.fail('This browser cannot play its format. Choose JPEG frames and open a new session.', mime);
      return;
    }
    this.add(segment, () => {
      if (!this.buffer) {
        const buffer = this.source.addSourceBuffer(mime);
        buffer.addEventListener('updateend', () => { if (buffer === this.buffer) this.updated(); });
        buffer.addEventListener('error', () => { if (buffer === this.buffer) this.fail('The browser could not read it. Reload the page to go on with the session.'); });
        this.buffer = buffer;
      } else if (mime !== this.mime) {
        this.buffer.changeType(mime);
      }
      this.mime = mime;
    });
  }

  append(segment, bytes, done) {
    this.add(segment, () => this.buffer.appendBuffer(bytes), () => {
      this.settle();
      done?.();
    });
  }

  /** Removes the segment's media from `from` seconds on. With `hold` the playback waits there, since the same pictures follow. */
  cut(segment, from, hold) {
    this.queue = this.queue.filter((op) => op.segment !== segment);
    this.add(null, () => {
      if (!this.buffer) return;
      if (this.source.readyState === 'open') this.buffer.abort(); // discard an incomplete MP4 box
      if (this.end > from) this.buffer.remove(from, Infinity);
    }, () => {
      if (this.time <= from) return;
      // The browser would ignore a seek to a position without media, so the seek waits for them.
      this.resumeAt = hold ? this.time : Math.max(0, from - 0.05);
      this.settle();
    });
  }

  finish() {
    this.add(null, () => {
      if (this.buffer && this.source.readyState === 'open') this.source.endOfStream();
    });
  }

  add(segment, run, done) {
    if (this.dead) return;
    this.queue.push({ segment, run, done });
    this.pump();
  }

  pump() {
    while (this.queue.length && this.full === null && this.source && this.source.readyState !== 'closed' && !this.buffer?.updating && !this.onUpdated) {
      const op = this.queue[0];
      try {
        op.run();
      } catch (error) {
        if (error.name === 'QuotaExceededError') this.makeRoom();
        else this.fail('The player stopped. Reload the page to go on with the session.', error);
        return;
      }
      this.queue.shift();
      if (this.buffer?.updating) this.onUpdated = op.done ?? (() => {});
      else op.done?.();
    }
  }

  updated() {
    const done = this.onUpdated;
    this.onUpdated = null;
    done?.();
    this.pump();
  }

  /** Evicts whole segments before the viewer's position. Removing a part of one would remove the pictures up to its next keyframe. */
  makeRoom() {
    const before = this.hooks.segmentStart(this.time) - 0.01;
    const first = this.video.buffered.length ? this.video.buffered.start(0) : Infinity;
    if (first < before) {
      this.buffer.remove(first, before);
      return;
    }
    this.full = setTimeout(() => {
      this.full = null;
      this.pump();
    }, FULL_RETRY_MS);
  }

  settle() {
    const ranges = this.ranges();
    if (!ranges.length) return;
    const inside = (t) => ranges.some(([from, to]) => t >= from - 0.001 && t < to);
    if (!this.started && !inside(this.time)) this.video.currentTime = ranges[0][0];
    if (this.resumeAt != null && inside(this.resumeAt)) {
      // The seek makes the decoder start at the new keyframe. Without it Chromium waits for that of the next segment.
      this.video.currentTime = this.resumeAt;
      this.resumeAt = null;
    }
    if (this.playing && this.video.paused) this.play();
  }

  async play() {
    this.playing = true;
    try {
      await this.video.play();
    } catch (error) {
      if (error.name !== 'NotAllowedError' || this.video.muted) return;
      this.video.muted = true;
      this.video.play().catch(() => {});
    }
  }

  pause() {
    this.playing = false;
    this.video.pause();
  }

  /** Seeks to a position in seconds. `again` returns the media of the segment there, in case they were evicted. */
  async seek(to, again) {
    this.resumeAt = null;
    const have = this.ranges().some(([from, end]) => to >= from - 0.05 && to < end);
    if (!have && this.buffer) for (const bytes of await again()) this.append(null, bytes);
    this.video.currentTime = to;
    if (this.playing && this.video.paused) this.play();
  }

  waiting() {
    const { video } = this;
    // The event is delayed: the player may have recovered already, or may not have started yet.
    if (!this.started || video.seeking || video.readyState !== 2 || this.atEnd || this.resumeAt != null) return;
    this.stalls += 1;
    const next = this.ranges().find(([from]) => from > video.currentTime);
    if (next && (this.holed || next[0] - video.currentTime < 1)) video.currentTime = next[0] + 0.001;
  }

  /**
   * Is called periodically. After a buffer underrun Chromium waits for more media than the rest of a segment has; a seek makes it
   * play what is buffered. While media are arriving (`more`), the player may buffer some first.
   */
  nudge(more) {
    const { video } = this;
    const ahead = this.end - this.time;
    const stuck = this.playing && this.started && !video.seeking && video.readyState === 2 && ahead > (more ? 1.2 : 0.12);
    this.stuck = stuck ? (this.stuck ?? 0) + 1 : 0;
    if (this.stuck < 4) return;
    this.stuck = 0;
    video.currentTime += 0.001;
  }
}

/** Plays `legacy_jpeg`: draws one picture per message, paced by the frame rate. It has the interface of `MsePlayer`. */
export class JpegPlayer {
  constructor(canvas, hooks) {
    this.canvas = canvas;
    this.hooks = hooks;
    this.fps = 24;
    this.stalls = 0;
    this.reset();
    const tick = (now) => {
      this.draw(now);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  get time() { return this.next / this.fps; }
  get paused() { return !this.playing; }
  get end() { return this.frames.length / this.fps; }
  get atEnd() { return this.next >= this.frames.length; }
  get hasPicture() { return this.drawn; }
  get starved() { return this.playing && this.atEnd; }
  get picture() { return this.canvas; }
  ranges() { return this.frames.length ? [[0, this.end]] : []; }

  reset() {
    this.frames = [];
    this.next = 0;
    this.due = 0;
    this.playing = true;
    this.drawn = this.decoding = false;
  }

  open() {}
  startSegment() {}
  finish() {}
  append(_segment, bytes, done) {
    this.frames.push(new Blob([bytes], { type: 'image/jpeg' }));
    done?.();
  }

  nudge() {}
  cut(_segment, from) {
    this.frames.length = Math.min(this.frames.length, Math.round(from * this.fps));
    this.next = Math.min(this.next, this.frames.length);
  }

  async draw(now) {
    if (!this.playing || this.decoding || this.atEnd || now < this.due) return;
    const frame = this.frames[this.next];
    this.next += 1;
    this.due = Math.max(this.due + 1000 / this.fps, now - 100);
    this.decoding = true;
    try {
      const image = await createImageBitmap(frame);
      if (this.canvas.width !== image.width || this.canvas.height !== image.height) {
        this.canvas.width = image.width;
        this.canvas.height = image.height;
      }
      this.canvas.getContext('2d').drawImage(image, 0, 0);
      image.close();
      this.drawn = true;
    } catch {
      this.hooks.failed('A picture could not be decoded.');
    }
    this.decoding = false;
  }

  play() {
    if (this.atEnd && this.hooks.ended()) this.next = 0;
    this.playing = true;
  }

  pause() { this.playing = false; }
  seek(to) { this.next = Math.min(this.frames.length, Math.round(to * this.fps)); }
}

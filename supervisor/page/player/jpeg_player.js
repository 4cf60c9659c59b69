// @ts-check
// Plays `legacy_jpeg`: draws one picture per message on a canvas, paced by the frame rate.

/** It has the interface of `MsePlayer`, and keeps its pictures by itself. */
export class JpegPlayer {
  /** @param {HTMLCanvasElement} canvas @param {{failed: (text: string) => void, ended: () => boolean}} hooks */
  constructor(canvas, hooks) {
    this.canvas = canvas;
    this.hooks = hooks;
    this.fps = 24;
    this.stalls = 0;
    /** @type {Blob[]} */
    this.frames = [];
    this.next = this.due = 0;
    this.reset();
    const tick = (/** @type {number} */ now) => {
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
    this.next = 0; // the index of the next picture
    this.due = 0;
    this.playing = true;
    this.drawn = this.decoding = false;
  }

  open() {}
  startSegment() {}
  finish() {}
  wake() {}
  refill() {}
  /** @param {number} _segment @param {(() => void) | null} done @param {BlobPart} bytes */
  added(_segment, done, bytes) {
    this.frames.push(new Blob([bytes], { type: 'image/jpeg' }));
    done?.();
  }

  /** @param {number} _segment @param {number} from */
  cut(_segment, from) {
    this.frames.length = Math.min(this.frames.length, Math.round(from * this.fps));
    this.next = Math.min(this.next, this.frames.length);
  }

  /** @param {number} now */
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
      this.canvas.getContext('2d')?.drawImage(image, 0, 0);
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
  /** @param {number} to  in seconds */
  seek(to) { this.next = Math.min(this.frames.length, Math.round(to * this.fps)); }
}

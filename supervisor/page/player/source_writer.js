// @ts-check
// One media source with its source buffer, which takes one operation at a time.

/** The error of an operation whose media source was closed or replaced. */
export class Detached extends Error {}

export class SourceWriter {
  /**
   * @param {HTMLVideoElement} video
   * @param {any} Source  `MediaSource` or `ManagedMediaSource`
   * @param {() => void} closed  is called when the browser closes the source
   */
  constructor(video, Source, closed) {
    this.source = new Source();
    /** @type {any} */
    this.buffer = null;
    /** @type {?string} */
    this.mime = null;
    /** @type {((error: ?Error) => void) | null} */
    this.settle = null; // ends the operation under way
    this.detached = false;
    /** @type {Promise<void>} */
    this.opened = new Promise((resolve) => { this.source.addEventListener('sourceopen', () => resolve(), { once: true }); });
    this.source.addEventListener('sourceclose', () => { if (!this.detached) closed(); });
    this.url = URL.createObjectURL(this.source);
    video.src = this.url;
  }

  get isBusy() { return this.settle !== null; }
  get isOpen() { return this.source.readyState !== 'closed'; }

  /** Gives the source up. The operation under way fails with `Detached`. */
  detach() {
    this.detached = true;
    URL.revokeObjectURL(this.url);
    this.settle?.(new Detached());
  }

  /** Begins media of this type. An init segment has to follow. @param {string} mime */
  async begin(mime) {
    if (!this.isOpen) await this.opened;
    if (this.detached) throw new Detached();
    if (!this.buffer) {
      this.buffer = this.source.addSourceBuffer(mime);
      this.buffer.addEventListener('updateend', () => this.settle?.(null));
      this.buffer.addEventListener('error', () => this.settle?.(new Error('the browser could not read the media')));
    } else {
      // Without this Firefox may drop all but the first fragment of a segment that follows another one.
      if (this.source.readyState === 'open') this.buffer.abort();
      if (mime !== this.mime) this.buffer.changeType(mime);
    }
    this.mime = mime;
  }

  /** @param {BufferSource} bytes @returns {Promise<void>} */
  append(bytes) {
    return this.operate(() => this.buffer.appendBuffer(bytes));
  }

  /**
   * Removes media. It does not call `abort`, after which the browser would drop the rest of a segment that is being appended, up to
   * the next keyframe.
   *
   * @param {number} from
   * @param {number} to
   * @returns {Promise<void>}
   */
  async remove(from, to) {
    if (!this.buffer) return;
    const { buffered } = this.buffer;
    if (!buffered.length || buffered.end(buffered.length - 1) <= from) return;
    await this.operate(() => this.buffer.remove(Math.max(0, from), to));
  }

  end() {
    if (this.source.readyState === 'open') this.source.endOfStream();
  }

  /** @param {() => void} start @returns {Promise<void>} */
  operate(start) {
    return new Promise((resolve, reject) => {
      if (this.detached) throw new Detached();
      start();
      this.settle = (error) => {
        this.settle = null;
        if (error) reject(error);
        else resolve();
      };
    });
  }
}

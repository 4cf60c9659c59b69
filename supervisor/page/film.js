// @ts-check
// The media of a session: what was received, and what the server keeps. The player and the download read from here.

/** A segment that could not be had from the server is asked for again after this time, in milliseconds. */
const RETRY_MS = 2000;

/**
 * Fetches a segment from the server; null means that the server does not keep it.
 *
 * @typedef {(idx: number) => Promise<?Uint8Array<ArrayBuffer>>} FetchSegment
 *
 * @typedef {object} SegmentMedia
 * @property {?string} mime
 * @property {Uint8Array<ArrayBuffer>[]} messages  until the segment is finished
 * @property {?Blob} blob  all messages of the finished segment; the browser may move a Blob out of memory
 * @property {number} initBytes  the size of the init segment at the start of `blob`
 * @property {number} bytes
 *
 * @typedef {Pick<import('./state.js').Segment, 'idx' | 'state' | 'start' | 'duration'> & {bytes?: number}} Place
 */

export class Film {
  /**
   * @param {() => readonly Place[]} places  returns what each segment is, and where it lies on the time line
   * @param {() => ?FetchSegment} server  returns how missing media are fetched; null when the server keeps none
   * @param {() => number} now
   */
  constructor(places, server = () => null, now = () => performance.now()) {
    this.getPlaces = places;
    this.server = server;
    this.now = now;
    /** @type {Map<number, SegmentMedia>} */
    this.media = new Map();
    /** @type {?string} */
    this.mime = null;
    this.clear();
  }

  clear() {
    this.media.clear();
    /** @type {Set<number>} */
    this.lost = new Set(); // the segments that the server does not keep
    /** @type {Map<number, number>} */
    this.retryAt = new Map();
    this.mime = null;
  }

  get places() { return this.getPlaces(); }

  // --- what is received ---

  /** Begins a segment, or goes on with one that was interrupted. @param {number} idx @param {string} mime */
  begin(idx, mime) {
    this.mime = mime;
    this.entry(idx).mime = mime;
  }

  /** Adds a binary message of a running segment. @param {number} idx @param {Uint8Array<ArrayBuffer>} bytes */
  add(idx, bytes) {
    const media = this.entry(idx);
    media.messages.push(bytes);
    media.bytes += bytes.byteLength;
  }

  /** Deletes the media of a segment that was voided. @param {number} idx */
  drop(idx) {
    this.media.delete(idx);
    this.lost.delete(idx);
  }

  /** Puts the messages of a finished segment into a Blob. @param {number} idx */
  finish(idx) {
    const media = this.entry(idx);
    if (media.blob) return;
    const { messages } = media;
    // The player may still hold the list.
    Object.assign(media, { messages: [], blob: new Blob(messages), initBytes: messages[0]?.byteLength ?? 0 });
  }

  /** @param {number} idx @returns {SegmentMedia} */
  entry(idx) {
    const known = this.media.get(idx);
    if (known) return known;
    const media = { mime: this.mime, messages: [], blob: null, initBytes: 0, bytes: 0 };
    this.media.set(idx, media);
    return media;
  }

  // --- what the player appends ---

  /** Returns the end of the film in seconds, as far as it is known. */
  get end() {
    return this.places.reduce((end, { start, duration }) => (duration ? Math.max(end, start + duration) : end), 0);
  }

  /** Returns the type of a segment's media. @param {number} idx */
  mimeOf(idx) {
    return this.media.get(idx)?.mime ?? this.mime;
  }

  /** Tells whether all media of a segment are here. @param {number} idx */
  isWhole(idx) {
    return Boolean(this.media.get(idx)?.blob?.size);
  }

  /** Returns the list of messages of a segment that is not finished; it grows. @param {number} idx */
  growing(idx) {
    const media = this.media.get(idx);
    return media && !media.blob ? media.messages : null;
  }

  /**
   * Tells whether the server has a segment that is not here as a whole. It may have to be asked again later.
   *
   * @param {Place} place
   */
  isAtServer({ idx, state }) {
    return this.server() !== null && state === 'done' && !this.isWhole(idx) && !this.lost.has(idx);
  }

  /** Tells whether the segment may be asked for now. @param {number} idx */
  isDue(idx) {
    return this.now() >= (this.retryAt.get(idx) ?? 0);
  }

  /**
   * Returns all media of a finished segment, from here or from the server; null when they cannot be had now.
   *
   * @param {number} idx
   * @returns {Promise<?Uint8Array<ArrayBuffer>[]>}
   */
  async load(idx) {
    const blob = this.media.get(idx)?.blob;
    if (blob?.size) return [new Uint8Array(await blob.arrayBuffer())];
    const fetchSegment = this.server();
    if (!fetchSegment) return null;
    try {
      const bytes = await fetchSegment(idx);
      if (bytes) return [bytes];
      this.lost.add(idx);
    } catch {
      this.retryAt.set(idx, this.now() + RETRY_MS);
    }
    return null;
  }

  // --- the download ---

  /** Returns the size of a finished segment in bytes; 0 for any other. @param {number} idx */
  size(idx) {
    return this.media.get(idx)?.blob?.size ?? 0;
  }

  /**
   * Joins segments to one file. The timestamps of the fragments are continuous, so that an init segment is needed only where it
   * differs from the one before.
   */
  async file(/** @type {number[]} */ indices) {
    /** @type {BlobPart[]} */
    const parts = [];
    /** @type {?Uint8Array<ArrayBuffer>} */
    let init = null;
    for (const idx of indices) {
      const { blob, initBytes } = this.media.get(idx) ?? {};
      if (!blob?.size) continue;
      const own = new Uint8Array(await blob.slice(0, initBytes).arrayBuffer());
      const same = init?.length === own.length && init.every((byte, i) => byte === own[i]);
      if (!same) parts.push(own);
      init = own;
      parts.push(blob.slice(initBytes));
    }
    return new Blob(parts, { type: 'video/mp4' });
  }
}

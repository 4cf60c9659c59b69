// @ts-check
// The media of a session as they were received: for the player when the viewer seeks back, and for the download.

/**
 * @typedef {object} SegmentMedia
 * @property {Uint8Array<ArrayBuffer>[]} messages  until the segment is finished
 * @property {?Blob} blob  all messages of the finished segment; the browser may move a Blob out of memory
 * @property {number} initBytes  the size of the init segment at the start of `blob`
 */

export class Recording {
  constructor() {
    /** @type {Map<number, SegmentMedia>} */
    this.segments = new Map();
  }

  clear() {
    this.segments.clear();
  }

  /** Adds a binary message of a running segment. @param {number} idx @param {Uint8Array<ArrayBuffer>} bytes */
  add(idx, bytes) {
    const media = this.segments.get(idx) ?? { messages: [], blob: null, initBytes: 0 };
    media.messages.push(bytes);
    this.segments.set(idx, media);
  }

  /** Deletes the media of a segment that was voided. @param {number} idx */
  drop(idx) {
    this.segments.delete(idx);
  }

  /** Puts the messages of a finished segment into a Blob. @param {number} idx */
  finish(idx) {
    const messages = this.segments.get(idx)?.messages ?? [];
    this.segments.set(idx, { messages: [], blob: new Blob(messages), initBytes: messages[0]?.byteLength ?? 0 });
  }

  /** Returns the size of a finished segment in bytes; 0 for any other. @param {number} idx */
  size(idx) {
    return this.segments.get(idx)?.blob?.size ?? 0;
  }

  /** Returns the init segment and the fragments. @param {number} idx @returns {Promise<Uint8Array<ArrayBuffer>[]>} */
  async bytes(idx) {
    const media = this.segments.get(idx);
    if (!media?.blob) return media?.messages ?? [];
    const all = new Uint8Array(await media.blob.arrayBuffer());
    return all.length ? [all.subarray(0, media.initBytes), all.subarray(media.initBytes)] : [];
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
      const { blob, initBytes } = this.segments.get(idx) ?? {};
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

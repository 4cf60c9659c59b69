// The files that only the opening message carries: an initial image, and a saved continuation state.

import { $, say, set } from './dom.js';
import { takeDrops } from './drop.js';
import { mib } from './format.js';
import { MAX_IMAGE, MAX_MESSAGE } from './protocol.js';

const IMAGE_NOTE = 'or drop it here. PNG, JPEG or WebP, up to 32 MiB.';
/** The server refuses a picture that is more times as long as wide. */
const MAX_ASPECT = 16;

/** The first bytes of the image types; -1 is any byte. */
const SIGNATURES = [
  ['image/png', [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]],
  ['image/jpeg', [0xff, 0xd8, 0xff]],
  ['image/webp', [0x52, 0x49, 0x46, 0x46, -1, -1, -1, -1, 0x57, 0x45, 0x42, 0x50]],
];
const SIGNATURE_BYTES = 12;

/**
 * Returns the type of an image file from its first bytes, since its name may be wrong. Throws an error with the reason if the file
 * cannot be the initial image.
 */
export function imageType(start, size) {
  const found = SIGNATURES.find(([, signature]) => signature.every((byte, i) => byte === -1 || byte === start[i]));
  if (!found) throw new Error('It is not a PNG, JPEG or WebP picture. Choose another file.');
  if (size > MAX_IMAGE) throw new Error(`It has ${mib(size)} MiB, and at most 32 are allowed. Choose a smaller picture.`);
  return found[0];
}

/** Throws an error with the reason if the server would refuse a picture for its shape. */
export function checkShape(width, height) {
  if (Math.max(width, height) <= MAX_ASPECT * Math.min(width, height)) return;
  throw new Error(`It is more than ${MAX_ASPECT} times as long as wide. Crop it, or choose another picture.`);
}

/** Parses a saved continuation state. Throws an error with the reason if the text is none. */
export function readState(text) {
  let state = null;
  try {
    state = JSON.parse(text);
  } catch {
    // It is none.
  }
  const isState = typeof state?.kind === 'string' && typeof state.payload === 'object' && state.payload !== null;
  if (!isState) throw new Error('It is not a saved state. Choose a file that “Save state” has made.');
  return state;
}

const UNREADABLE = 'It could not be read. Try again, or choose another file.';

/** Decodes a picture as the browser shows it. Throws an error with the reason if it is damaged, or the server would refuse its shape. */
async function checkPicture(file, mime) {
  const url = URL.createObjectURL(new Blob([file], { type: mime }));
  try {
    const picture = new Image();
    picture.src = url;
    await picture.decode().catch(() => { throw new Error('The picture is damaged. Choose another one.'); });
    checkShape(picture.naturalWidth, picture.naturalHeight);
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Returns the type of an image file. Throws an error with the reason if it cannot be a first image. @param {File} file */
export async function checkImage(file) {
  const start = await file.slice(0, SIGNATURE_BYTES).arrayBuffer().catch(() => { throw new Error(UNREADABLE); });
  const mime = imageType(new Uint8Array(start), file.size);
  await checkPicture(file, mime);
  return mime;
}

/** The file fields, and the drop target for both kinds of file. */
export class Attachments {
  /**
   * @param {(files: {image: ?object, state: ?object}) => void} changed
   * @param {(title: string, text: string) => void} report
   */
  constructor(changed, report) {
    this.changed = changed;
    this.report = report;
    this.image = this.state = this.preview = null;
    $('image').onchange = ({ target }) => this.take(target.files[0], target);
    $('state').onchange = ({ target }) => this.take(target.files[0], target);
    $('image-remove').onclick = () => this.choose({ image: null });
    $('state-remove').onclick = () => this.choose({ state: null });
    takeDrops({
      isOpen: () => !$('opening').disabled && !$('live').hidden,
      words: 'Drop an image or a saved state',
      take: ([file]) => this.take(file),
    });
  }

  async take(file, input) {
    if (input) input.value = ''; // so that choosing the same file again is a change
    if (!file) return;
    const turn = this.turn = (this.turn ?? 0) + 1;
    try {
      const holdsState = file.name.endsWith('.json') || file.type === 'application/json';
      const chosen = holdsState ? await this.stateIn(file) : await this.imageIn(file);
      if (turn === this.turn) this.choose(chosen, file); // unless another file was chosen while this one was read
    } catch (error) {
      this.report(`“${file.name}” cannot be used.`, error.message);
    }
  }

  async imageIn(file) {
    const mime = await checkImage(file);
    const url = await new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(new Error(UNREADABLE));
      reader.readAsDataURL(file);
    });
    return { image: { mime, name: file.name, data: url.slice(url.indexOf(',') + 1) } };
  }

  async stateIn(file) {
    if (file.size > MAX_MESSAGE) throw new Error('It is larger than the server accepts.');
    return { state: readState(await file.text().catch(() => { throw new Error(UNREADABLE); })) };
  }

  /** Replaces or removes one of the two files, and reports the change. */
  choose(chosen, file = null) {
    if ('image' in chosen) this.showImage(chosen.image, file);
    else this.showState(chosen.state, file);
    this.changed({ image: this.image, state: this.state });
  }

  /** Removes both files, because a session was opened with them. */
  clear() {
    this.showImage(null);
    this.showState(null);
  }

  showImage(image, file = null) {
    this.image = image;
    if (this.preview) URL.revokeObjectURL(this.preview);
    this.preview = file ? URL.createObjectURL(file) : null;
    for (const id of ['image-preview', 'image-remove']) set($(id), { hidden: !file });
    if (file) $('image-preview').src = this.preview;
    else $('image-preview').removeAttribute('src');
    say($('image-note'), file ? `${file.name}, ${(file.size / 1024).toFixed(0)} KiB` : IMAGE_NOTE);
  }

  showState(state, file = null) {
    this.state = state;
    set($('state-remove'), { hidden: !state });
    const index = state?.payload.segment_index;
    const after = index == null ? '' : `, after segment ${index + 1}`;
    say($('state-note'), state ? `${file.name}: ${state.kind}${after}` : 'to go on from an earlier session.');
  }
}

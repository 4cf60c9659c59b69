// The files that only the opening message carries: an initial image, and a saved continuation state.

import { $, say, set } from './dom.js';
import { mib } from './format.js';
import { MAX_IMAGE, MAX_MESSAGE } from './protocol.js';

const IMAGE_TYPES = ['image/png', 'image/jpeg', 'image/webp'];

/** Throws an error with the reason if a file cannot be the initial image. */
export function checkImage({ type, size }) {
  if (!IMAGE_TYPES.includes(type)) throw new Error('A first image is a PNG, JPEG or WebP file.');
  if (size > MAX_IMAGE) throw new Error(`The image has ${mib(size)} MiB, at most 32 are allowed.`);
}

/** Parses a saved continuation state. Throws an error with the reason if the text is none. */
export function readState(text) {
  const state = JSON.parse(text);
  const isState = typeof state?.kind === 'string' && typeof state.payload === 'object' && state.payload !== null;
  if (!isState) throw new Error('A saved state has a kind and a payload.');
  return state;
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
    const carriesFile = (event) => event.dataTransfer?.types.includes('Files') && !$('opening').disabled;
    document.addEventListener('dragover', (event) => {
      if (!carriesFile(event)) return;
      event.preventDefault();
      document.body.dataset.drop = true;
    });
    document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) delete document.body.dataset.drop; });
    document.addEventListener('drop', (event) => {
      delete document.body.dataset.drop;
      if (!carriesFile(event)) return;
      event.preventDefault();
      this.take(event.dataTransfer.files[0]);
    });
  }

  async take(file, input) {
    if (input) input.value = ''; // so that choosing the same file again is a change
    if (!file) return;
    try {
      const holdsState = file.name.endsWith('.json') || file.type === 'application/json';
      this.choose(holdsState ? await this.stateIn(file) : await this.imageIn(file), file);
    } catch (error) {
      this.report('This file cannot be used.', error.message);
    }
  }

  async imageIn(file) {
    checkImage(file);
    const url = await new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(new Error('The file could not be read.'));
      reader.readAsDataURL(file);
    });
    return { image: { mime: file.type, name: file.name, data: url.slice(url.indexOf(',') + 1) } };
  }

  async stateIn(file) {
    if (file.size > MAX_MESSAGE) throw new Error('The state is larger than the server accepts in one message.');
    return { state: readState(await file.text().catch(() => '')) };
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
    say($('image-note'), file ? `${file.name}, ${(file.size / 1024).toFixed(0)} KiB` : 'or drop it here. PNG, JPEG or WebP, up to 32 MiB.');
  }

  showState(state, file = null) {
    this.state = state;
    set($('state-remove'), { hidden: !state });
    const index = state?.payload.segment_index;
    const after = index == null ? '' : `, after segment ${index + 1}`;
    say($('state-note'), state ? `${file.name}: ${state.kind}${after}` : 'to go on from an earlier session.');
  }
}

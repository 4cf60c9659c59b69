// What only the opening message carries.

import { $, MIB, say } from './dom.js';

export const MAX_IMAGE = 32 * MIB;
export const MAX_MESSAGE = 48 * MIB;

/** What only the opening message carries: a first image, a saved state, and how the session runs. */
export class Attachments {
  constructor(report) {
    this.report = report;
    this.image = this.state = null;
    $('image').onchange = ({ target }) => this.take(target.files[0], target);
    $('state').onchange = ({ target }) => this.take(target.files[0], target);
    $('image-remove').onclick = () => this.setImage(null);
    $('state-remove').onclick = () => this.setState(null);
    const holdsFile = (event) => event.dataTransfer?.types.includes('Files') && !$('opening').disabled;
    document.addEventListener('dragover', (event) => {
      if (!holdsFile(event)) return;
      event.preventDefault();
      document.body.dataset.drop = true;
    });
    document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) delete document.body.dataset.drop; });
    document.addEventListener('drop', (event) => {
      delete document.body.dataset.drop;
      if (!holdsFile(event)) return;
      event.preventDefault();
      this.take(event.dataTransfer.files[0]);
    });
  }

  async take(file, input) {
    if (input) input.value = ''; // so that the same file can be chosen again
    if (!file) return;
    try {
      if (file.name.endsWith('.json') || file.type === 'application/json') await this.readState(file);
      else await this.readImage(file);
    } catch (error) {
      this.report('This file cannot be used.', error.message);
    }
  }

  async readImage(file) {
    if (!['image/png', 'image/jpeg', 'image/webp'].includes(file.type)) throw new Error('A first image is a PNG, JPEG or WebP file.');
    if (file.size > MAX_IMAGE) throw new Error(`The image has ${(file.size / MIB).toFixed(1)} MiB, at most 32 are allowed.`);
    const url = await new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(new Error('The file could not be read.'));
      reader.readAsDataURL(file);
    });
    this.setImage({ mime: file.type, name: file.name, data: url.slice(url.indexOf(',') + 1) }, file);
  }

  async readState(file) {
    const state = JSON.parse(await file.text().catch(() => ''));
    if (typeof state?.kind !== 'string' || typeof state.payload !== 'object') throw new Error('A saved state has a kind and a payload.');
    if (file.size > MAX_MESSAGE) throw new Error('The state is larger than the server accepts in one message.');
    this.setState(state, file.name);
  }

  setImage(image, file) {
    this.image = image;
    if (this.preview) URL.revokeObjectURL(this.preview);
    this.preview = file ? URL.createObjectURL(file) : null;
    $('image-preview').hidden = $('image-remove').hidden = !file;
    if (file) $('image-preview').src = this.preview;
    else $('image-preview').removeAttribute('src');
    say($('image-note'), file ? `${file.name}, ${(file.size / 1024).toFixed(0)} KiB` : 'or drop it here. PNG, JPEG or WebP, up to 32 MiB.');
  }

  setState(state, name) {
    this.state = state;
    $('state-remove').hidden = !state;
    const index = state?.payload.segment_index;
    const after = index == null ? '' : `, after segment ${index + 1}`;
    say($('state-note'), state ? `${name}: ${state.kind}${after}` : 'to go on from an earlier session.');
  }
}

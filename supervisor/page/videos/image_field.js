// The field of the first image of a video: chosen, or dropped anywhere on the tab.

import { checkImage } from '../attachments.js';
import { $, mark, say, set } from '../dom.js';
import { takeDrops } from '../drop.js';
import { sentence } from '../format.js';

export class ImageField {
  constructor() {
    this.note = $('make-image-note').textContent;
    this.address = null;
    $('make-image').onchange = () => this.check();
    $('make-image-remove').onclick = () => {
      this.clear();
      $('make-image').focus();
    };
    takeDrops({
      isOpen: () => !$('videos').hidden,
      words: 'Drop an image',
      take: (files) => {
        $('make-image').files = files;
        this.check();
      },
    });
  }

  /** Shows the chosen image, or why it cannot be used. */
  async check() {
    const [file] = $('make-image').files;
    if (!file) return this.clear();
    try {
      const type = await checkImage(file);
      if ($('make-image').files[0] === file) this.show(file, type); // unless another one was chosen meanwhile
    } catch (error) {
      this.clear();
      say($('make-image-note'), sentence(error.message));
      mark($('make-image-note'), { bad: true });
    }
  }

  show(file, type) {
    this.clear(false);
    this.address = URL.createObjectURL(new Blob([file], { type }));
    $('make-image-preview').src = this.address;
    for (const id of ['make-image-preview', 'make-image-remove']) set($(id), { hidden: false });
    say($('make-image-note'), `${file.name}, ${(file.size / 1024).toFixed(0)} KiB`);
  }

  clear(isEmptied = true) {
    if (this.address) URL.revokeObjectURL(this.address);
    this.address = null;
    if (isEmptied) $('make-image').value = '';
    $('make-image-preview').removeAttribute('src');
    for (const id of ['make-image-preview', 'make-image-remove']) set($(id), { hidden: true });
    say($('make-image-note'), this.note);
    mark($('make-image-note'), { bad: false });
  }
}

// The form with which a video is made. Its fields have the names of the request's.

import { $, say, set } from '../dom.js';
import { ImageField } from './image_field.js';
import { clearRefusals, showRefusal } from './refusal.js';
import { createVideo } from './requests.js';
import { Submission } from './submission.js';

/** Returns the fields that have a value. @param {HTMLFormElement} form */
function filledFields(form) {
  const data = new FormData(form);
  for (const [name, value] of [...data]) if (value === '' || (value instanceof File && !value.size)) data.delete(name);
  return data;
}

/** Returns a text that two forms share when they ask for the same. @param {FormData} data */
const contentOf = (data) => JSON.stringify([...data].map(([name, value]) => (
  [name, value instanceof File ? [value.name, value.size, value.lastModified] : value])));

export class MakeForm {
  /** @param {(job: import('./requests.js').Video) => void} made */
  constructor(made) {
    this.made = made;
    this.image = new ImageField();
    this.submission = new Submission();
    this.note = $('make-note').textContent;
    $('make').onsubmit = (event) => {
      event.preventDefault();
      this.submit();
    };
    $('make-prompt').onkeydown = (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      $('make').requestSubmit();
    };
  }

  async submit() {
    if (!$('make-prompt').value.trim()) {
      $('make-prompt').focus();
      return;
    }
    const form = $('make');
    clearRefusals(form);
    say($('make-note'), this.note);
    const data = filledFields(form);
    try {
      const job = await this.submission.send(contentOf(data), (key) => createVideo(data, key));
      if (!job) return;
      set($('make-prompt'), { value: '' });
      this.image.clear();
      this.made(job);
    } catch (error) {
      say($('make-note'), showRefusal(form, error) || this.note);
    }
  }
}

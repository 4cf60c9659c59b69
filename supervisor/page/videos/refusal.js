// Shows at the fields of a form why the server refuses its request. Each field is named as in the request and has a note below it,
// in whose place the reason stands.

import { mark, say } from '../dom.js';
import { refusalWords } from '../words.js';

const noteOf = (field) => document.getElementById(field.getAttribute('aria-describedby'));

/** Puts the notes back that were there before. */
export function clearRefusals(form) {
  for (const field of form.querySelectorAll('[aria-invalid]')) {
    field.removeAttribute('aria-invalid');
    const note = noteOf(field);
    say(note, note.dataset.help ?? '');
    mark(note, { bad: false });
  }
}

/**
 * Shows a refusal at the field that it names, and moves the focus there. Returns the words where there is no such field.
 *
 * @param {HTMLFormElement} form
 * @param {{message: string, param?: ?string}} error
 * @returns {string}
 */
export function showRefusal(form, { message, param }) {
  const field = param && form.elements.namedItem(param);
  const words = refusalWords(message, param);
  if (!field) return words;
  const note = noteOf(field);
  note.dataset.help ??= note.textContent;
  field.setAttribute('aria-invalid', 'true');
  say(note, words);
  mark(note, { bad: true });
  field.focus();
  return '';
}

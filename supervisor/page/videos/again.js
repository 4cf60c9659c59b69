// The form below a job with which another job is made of it: the same with other words, or one that goes on where it ends.

import { make, say } from '../dom.js';
import { clearRefusals, showRefusal } from './refusal.js';
import { extendVideo, remixVideo } from './requests.js';
import { Submission } from './submission.js';

/** What can be made of a job: the title of the button and of the form, the request, and the fields besides the prompt. */
export const WAYS = {
  remix: { name: 'Make again', title: 'Make again with other words', send: remixVideo, fields: [] },
  extend: {
    name: 'Go on', title: 'Go on where it ends', send: extendVideo,
    fields: [{ name: 'seconds', label: 'Seconds to add', help: 'Such as 4 or 2.5.', placeholder: '4' }],
  },
};

/**
 * Returns the form.
 *
 * @param {import('./requests.js').Video} job
 * @param {keyof typeof WAYS} way
 * @param {(job: import('./requests.js').Video) => void} made
 * @param {() => void} close
 */
export function againForm(job, way, made, close) {
  const { title, send, fields } = WAYS[way];
  const submission = new Submission();
  const form = make('form', 'again');
  form.setAttribute('aria-label', `${title}: ${job.prompt}`);
  const prompt = make('textarea');
  prompt.rows = 3;
  prompt.value = job.prompt;
  const note = make('p', 'note');
  note.setAttribute('role', 'status');
  form.append(
    make('h3', '', title), labelled(job.id, prompt, { name: 'prompt', label: 'Prompt', help: '' }),
    ...fields.map((field) => labelled(job.id, make('input'), field)), note, actions(close),
  );
  form.onsubmit = async (event) => {
    event.preventDefault();
    clearRefusals(form);
    say(note, '');
    const given = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ''));
    try {
      const answer = await submission.send(JSON.stringify(given), (key) => send(job.id, given, key));
      if (answer) made(answer);
    } catch (error) {
      say(note, showRefusal(form, error));
    }
  };
  form.onkeydown = ({ key }) => { if (key === 'Escape') close(); };
  return form;
}

function labelled(id, field, { name, label: text, help, placeholder = '' }) {
  const part = make('div', 'field');
  const label = make('label', '', text);
  const note = make('small', 'help', help);
  if (field instanceof HTMLInputElement) field.type = 'text';
  Object.assign(field, { name, placeholder, id: `${name}-${id}` });
  label.htmlFor = field.id;
  note.id = `${field.id}-note`;
  field.setAttribute('aria-describedby', note.id);
  part.append(label, field, note);
  return part;
}

function actions(close) {
  const row = make('div', 'row');
  const send = make('button', 'btn small', 'Make the video');
  send.dataset.action = 'send';
  const no = make('button', 'btn small quiet', 'Close');
  no.type = 'button';
  no.onclick = close;
  row.append(send, no);
  return row;
}

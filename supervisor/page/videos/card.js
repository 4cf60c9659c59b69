// One job in the list: its picture, what it does, and what can be done with it. Only what has changed is written to the DOM.

import { facts, make, mark, say, set } from '../dom.js';
import { mib, sentence, span } from '../format.js';
import { videoWords } from '../words.js';
import { WAYS, againForm } from './again.js';
import { isCancelled, isUnfinished } from './job_list.js';
import { download } from './media.js';
import { Picture } from './picture.js';
import { cancelVideo, deleteVideo } from './requests.js';

/** Where a key has to be shown, a video is there only when all of it is. */
const FETCHING = 'Fetching the video…';

/**
 * What the card does to the list.
 *
 * @typedef {object} Hooks
 * @property {(job: import('./requests.js').Video) => void} made  is called with a job that was made of this one
 * @property {(job: import('./requests.js').Video) => void} changed  is called with this job
 * @property {(id: string) => void} deleted
 */

export class Card {
  /** @param {import('./requests.js').Video} job @param {Hooks} hooks */
  constructor(job, hooks) {
    this.id = job.id;
    this.prompt = job.prompt;
    this.hooks = hooks;
    this.offered = null;
    this.isAsking = false;
    this.root = make('li', 'job');
    this.root.dataset.testid = job.id;
    this.picture = new Picture(job.id, job.prompt, (act) => this.run(act, FETCHING));
    this.state = make('p', 'job-state');
    this.bar = progressBar(job.prompt);
    const words = make('p', 'job-prompt', job.prompt);
    words.title = job.prompt;
    this.line = make('div', 'facts-line');
    this.actions = make('div', 'row job-actions');
    this.note = make('p', 'note');
    this.note.setAttribute('role', 'status');
    this.root.append(this.picture.root, this.bar, this.state, words, this.line, this.actions, this.note);
    this.render(job);
  }

  /** @param {import('./requests.js').Video} job */
  render(job) {
    if (job === this.job) return;
    this.job = job;
    const words = videoWords(job);
    mark(this.root, { state: isCancelled(job) ? 'cancelled' : job.status });
    say(this.state, words);
    this.bar.setAttribute('aria-valuenow', String(job.progress));
    this.bar.setAttribute('aria-valuetext', words);
    this.bar.firstElementChild.style.setProperty('--v', String(job.progress / 100));
    this.picture.show(job.status === 'completed');
    facts(this.line, factsOf(job));
    this.offer(actionsOf(job));
  }

  /** Shows the buttons of what the job allows. The focus stays where it is, or goes to the first of them. */
  offer(names) {
    this.names = names;
    const key = names.join();
    if (this.offered === key || this.isAsking) return;
    this.offered = key;
    const focused = this.actions.contains(document.activeElement) && document.activeElement.dataset.action;
    const [first, ...others] = names.map((name) => this.button(name));
    this.actions.replaceChildren(first, ...others);
    if (focused) ([first, ...others].find(({ dataset }) => dataset.action === focused) ?? first).focus();
  }

  button(name) {
    const act = {
      download: () => this.run(() => download(this.id), FETCHING),
      cancel: () => this.run(async () => this.hooks.changed(await cancelVideo(this.id))),
      delete: () => this.confirm(),
    }[name] ?? (() => this.openForm(name));
    const text = { download: 'Download', cancel: 'Cancel', delete: 'Delete' }[name] ?? WAYS[name].name;
    return this.makeButton(name, text, act);
  }

  makeButton(name, text, act) {
    const button = make('button', 'btn small quiet', text);
    button.type = 'button';
    button.dataset.action = name;
    button.setAttribute('aria-label', `${text}: ${this.prompt}`);
    button.onclick = act;
    return button;
  }

  /** Asks for confirmation: what is deleted cannot be fetched any more. */
  confirm() {
    this.isAsking = true;
    const over = () => {
      this.isAsking = false;
      this.offered = null;
      this.offer(this.names);
    };
    const yes = this.makeButton('confirm', 'Delete it', () => this.run(async () => {
      await deleteVideo(this.id);
      this.hooks.deleted(this.id);
    }).then(over));
    yes.classList.remove('quiet');
    const no = this.makeButton('delete', 'Keep it', over);
    this.actions.replaceChildren(yes, no);
    no.focus();
  }

  /** Runs what a button asks for, and shows why it fails. @param {() => Promise<void>} act @param {string} [words]  shown meanwhile */
  async run(act, words = '') {
    say(this.note, words);
    try {
      await act();
      say(this.note, '');
    } catch (error) {
      say(this.note, sentence(error.message));
    }
  }

  /** Opens a form below the job, in the place of one that is open. @param {keyof typeof WAYS} way */
  openForm(way) {
    this.form?.remove();
    const close = () => {
      this.form.remove();
      this.actions.querySelector(`[data-action="${way}"]`)?.focus();
    };
    this.form = againForm(this.job, way, (job) => {
      close();
      this.hooks.made(job);
    }, close);
    this.root.append(this.form);
    this.form.elements.namedItem('prompt').focus();
  }

  pause() {
    this.picture.pause();
  }

  remove() {
    this.picture.remove();
    this.root.remove();
  }
}

/** Returns what can be done with a job. @param {import('./requests.js').Video} job */
function actionsOf(job) {
  if (isUnfinished(job)) return ['cancel', 'delete'];
  return job.status === 'completed' ? ['download', 'remix', 'extend', 'delete'] : ['delete'];
}

/** @param {import('./requests.js').Video} job */
function factsOf(job) {
  const { size, seconds, fps, seed, bytes, inference_time_s: made, expires_at: end } = job;
  return [
    ['size', size.replace('x', '×')], ['plays', `${seconds} s`], ['fps', fps], ['seed', seed], ['file', bytes ? `${mib(bytes)} MiB` : ''],
    ['made in', made && !isUnfinished(job) ? span(made) : ''],
    ['kept until', end ? new Date(end * 1000).toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' }) : ''],
  ];
}

function progressBar(prompt) {
  const bar = make('div', 'meter');
  bar.append(make('i'));
  bar.setAttribute('role', 'progressbar');
  bar.setAttribute('aria-label', `Progress of the video: ${prompt}`);
  bar.setAttribute('aria-valuemin', '0');
  bar.setAttribute('aria-valuemax', '100');
  return bar;
}

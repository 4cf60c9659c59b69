// One session of the history: its picture, its first prompt, and what can be done with it.

import { facts, icon, make, mark, say, saveFrom, set } from '../dom.js';
import { sentence } from '../format.js';
import { canGoOn, continueWords, recordFacts } from './history_words.js';
import { nameOf } from './replay.js';

/**
 * @typedef {import('./record.js').HistoryRecord} HistoryRecord
 *
 * @typedef {object} Hooks
 * @property {(record: HistoryRecord) => Promise<string>} source  returns the address of the film
 * @property {(record: HistoryRecord) => Promise<void>} goOn
 * @property {(record: HistoryRecord) => Promise<void>} remove
 */

export class HistoryCard {
  /** @param {HistoryRecord} record @param {Hooks} hooks */
  constructor(record, hooks) {
    this.hooks = hooks;
    this.record = record;
    this.video = null;
    this.thumbnail = null;
    this.addresses = [];
    this.root = make('li', 'job past');
    this.root.dataset.testid = `past-${record.id}`;
    this.picture = make('div', 'job-picture');
    this.play = this.button('Play', () => this.watch());
    this.play.className = 'job-play';
    this.play.replaceChildren(icon('play'));
    this.picture.append(this.play);
    this.date = make('p', 'job-state');
    this.words = make('p', 'job-prompt');
    this.line = make('div', 'facts-line');
    this.actions = make('div', 'row job-actions');
    this.goOn = this.button('Continue', () => this.run(() => hooks.goOn(this.record)));
    this.note = make('p', 'note');
    this.note.setAttribute('role', 'status');
    this.offer();
    this.root.append(this.picture, this.date, this.words, this.line, this.actions, this.note);
    this.render(record);
  }

  render(record) {
    this.record = record;
    const [first] = record.prompts;
    const date = new Date(record.startedAt).toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' });
    say(this.date, date);
    say(this.words, first);
    set(this.words, { title: record.prompts.join('\n') });
    facts(this.line, recordFacts(record));
    set(this.goOn, { disabled: !canGoOn(record, Date.now()), title: continueWords(record, Date.now()) });
    for (const button of this.root.querySelectorAll('button')) button.setAttribute('aria-label', `${button.dataset.words}: ${first}, ${date}`);
    if (record.thumbnail && !this.thumbnail) {
      this.thumbnail = make('img');
      Object.assign(this.thumbnail, { alt: '', src: this.address(record.thumbnail) });
      this.picture.prepend(this.thumbnail);
    }
  }

  button(words, act) {
    const button = make('button', 'btn small quiet', words);
    button.type = 'button';
    mark(button, { words, action: words.toLowerCase().replaceAll(' ', '-') });
    button.onclick = act;
    return button;
  }

  offer() {
    this.actions.replaceChildren(
      this.goOn,
      this.button('Download', () => this.run(async () => saveFrom(await this.source(), nameOf(this.record)))),
      this.button('Delete', () => this.confirm()),
    );
  }

  /** Asks for confirmation: what is deleted is gone. */
  confirm() {
    const yes = this.button('Delete it', () => this.run(() => this.hooks.remove(this.record)));
    const no = this.button('Keep it', () => {
      this.offer();
      this.render(this.record);
      this.actions.querySelector('[data-action=delete]').focus();
    });
    yes.classList.remove('quiet');
    this.actions.replaceChildren(yes, no);
    this.render(this.record);
    no.focus();
  }

  /** Plays the film in the place of the picture. */
  watch() {
    return this.run(async () => {
      const video = make('video');
      Object.assign(video, { controls: true, autoplay: true, playsInline: true, src: await this.source() });
      video.setAttribute('aria-label', `Film: ${this.record.prompts[0]}`);
      video.onerror = () => this.run(() => this.giveUp());
      this.video = video;
      this.picture.append(video);
      set(this.play, { hidden: true });
      video.focus();
    });
  }

  async giveUp() {
    this.video?.remove();
    this.video = null;
    set(this.play, { hidden: false });
    throw new Error('the film cannot be played');
  }

  async source() {
    const address = await this.hooks.source(this.record);
    if (address.startsWith('blob:')) this.addresses.push(address);
    return address;
  }

  address(blob) {
    const address = URL.createObjectURL(blob);
    this.addresses.push(address);
    return address;
  }

  /** Runs what a button asks for, and shows why it fails. */
  async run(act) {
    say(this.note, '');
    try {
      await act();
    } catch (error) {
      say(this.note, sentence(error.message));
    }
  }

  pause() {
    this.video?.pause();
  }

  remove() {
    this.pause();
    this.root.remove();
    this.addresses.forEach((address) => URL.revokeObjectURL(address));
  }
}

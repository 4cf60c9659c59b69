// One session of the history: its picture, its first prompt, and what can be done with it.

import { facts, icon, make, mark, say, saveFrom, set } from '../dom.js';
import { sentence } from '../format.js';
import { canGoOn, continueWords, lackWords, recordFacts } from './history_words.js';
import { nameOf } from './replay.js';

/**
 * @typedef {import('./record.js').HistoryRecord} HistoryRecord
 *
 * @typedef {object} Hooks
 * @property {(record: HistoryRecord) => Promise<string>} source  returns the address of the film
 * @property {(video: HTMLVideoElement) => void} watched  is called when the film is about to play, so that no other one does
 * @property {(record: HistoryRecord) => Promise<void>} goOn
 * @property {(record: HistoryRecord) => Promise<void>} remove
 */

export class HistoryCard {
  /** @param {HistoryRecord} record @param {Hooks} hooks */
  constructor(record, hooks) {
    this.hooks = hooks;
    this.record = record;
    /** @type {?HTMLVideoElement} */
    this.video = null; // while the film is watched, or fetched for that
    this.thumbnail = null;
    this.root = make('li', 'job past');
    this.root.dataset.testid = `past-${record.id}`;
    this.picture = make('div', 'job-picture');
    this.play = this.button('Play', () => this.run(() => this.watch()));
    this.play.className = 'job-play';
    this.play.replaceChildren(icon('play'));
    this.picture.append(this.play);
    this.date = make('p', 'job-state');
    this.words = make('p', 'job-prompt');
    this.line = make('div', 'facts-line');
    this.lack = make('p', 'note');
    this.actions = make('div', 'row job-actions');
    this.goOn = this.button('Continue', () => this.run(() => hooks.goOn(this.record)));
    this.download = this.button('Download', () => this.run(async () => saveFrom(await hooks.source(this.record), nameOf(this.record))));
    this.note = make('p', 'note');
    this.note.setAttribute('role', 'status');
    this.offer();
    this.root.append(this.picture, this.date, this.words, this.line, this.lack, this.actions, this.note);
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
    const now = Date.now();
    const goesOn = canGoOn(record, now);
    set(this.goOn, { disabled: !goesOn, title: continueWords(record, now) });
    say(this.lack, [lackWords(record), goesOn ? '' : continueWords(record, now)].filter(Boolean).join(' '));
    set(this.play, { hidden: Boolean(this.video?.isConnected || record.isPictures) });
    set(this.download, { disabled: Boolean(record.isPictures) });
    for (const button of this.root.querySelectorAll('button')) button.setAttribute('aria-label', `${button.dataset.words}: ${first}, ${date}`);
    if (record.thumbnail && !this.thumbnail) {
      this.thumbnail = make('img');
      Object.assign(this.thumbnail, { alt: '', src: URL.createObjectURL(record.thumbnail) });
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
    this.actions.replaceChildren(this.goOn, this.download, this.button('Delete', () => this.confirm()));
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

  /** Plays the film in the place of the picture, unless the card is left before it is there. */
  async watch() {
    if (this.video) return;
    const video = this.video = make('video');
    Object.assign(video, { controls: true, autoplay: true, playsInline: true });
    video.setAttribute('aria-label', `Film: ${this.record.prompts[0]}`);
    this.hooks.watched(video);
    try {
      const address = await this.hooks.source(this.record);
      if (this.video !== video) return URL.revokeObjectURL(address);
      video.src = address;
    } catch (error) {
      if (this.video === video) this.video = null;
      throw error;
    }
    video.onerror = () => this.run(() => this.giveUp());
    this.picture.append(video);
    set(this.play, { hidden: true });
    video.focus();
  }

  async giveUp() {
    this.close();
    set(this.play, { hidden: false });
    throw new Error('the film cannot be played');
  }

  /** Takes the film away, also one that is still fetched. */
  close() {
    const { video } = this;
    this.video = null;
    if (!video?.src) return;
    video.onerror = null;
    video.remove();
    URL.revokeObjectURL(video.src);
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

  /** Pauses the film. One that is still fetched does not begin. */
  pause() {
    if (this.video?.src) this.video.pause();
    else this.video = null;
  }

  /** Sets the focus to the first thing that can be done. */
  focus() {
    [this.play, ...this.actions.children].find((button) => !button.hidden && !button.disabled)?.focus();
  }

  remove() {
    this.video?.pause();
    this.close();
    this.root.remove();
    if (this.thumbnail) URL.revokeObjectURL(this.thumbnail.src);
  }
}

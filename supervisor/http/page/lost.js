// What lies between a lost connection and the next one: the pauses, the notice, and the token that the tab keeps.

import { $, say } from './dom.js';

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;
const KEY = 'fastvideo.session';

/** Tries again by itself, after pauses that grow. The notice counts down and takes orders. */
export class Retry {
  constructor(again, giveUp) {
    this.again = again;
    this.on = false;
    this.tries = 0;
    $('lost-now').onclick = () => this.now();
    $('lost-end').onclick = giveUp;
    window.addEventListener('online', () => this.now());
    this.show();
  }

  /** The connection was lost, or could not be had again: `why`, if that is known. */
  later(why) {
    const pause = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** this.tries);
    this.wait(pause * (1 - 0.3 * Math.random()), why); // so that not all pages come at once
    this.tries += 1;
  }

  wait(pause, why) {
    this.on = true;
    this.due = performance.now() + pause;
    this.why = why;
    clearInterval(this.clock);
    this.clock = setInterval(() => {
      if (performance.now() >= this.due) this.now();
      else this.show();
    }, 100);
    this.show();
  }

  now() {
    if (!this.on || this.due == null) return;
    clearInterval(this.clock);
    this.due = null;
    this.show();
    this.again();
  }

  /** The server answers, or nobody wants it to any more. */
  stop() {
    clearInterval(this.clock);
    this.on = false;
    this.due = null;
    this.show();
  }

  /** The session goes on, so that the next loss is a new one. */
  reset() {
    this.stop();
    this.tries = 0;
  }

  show() {
    $('lost').hidden = !this.on;
    $('lost-now').disabled = this.due == null;
    if (!this.on) return;
    const rest = Math.max(1, Math.ceil((this.due - performance.now()) / 1000));
    say($('lost-text'), this.due == null ? 'trying again now' : `trying again in ${rest} s`);
    say($('lost-why'), this.why ?? '');
  }
}

/** What a session is resumed with. Outlives a reload of the tab, not the tab; no other page gets to see it. */
export const ticket = {
  load() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEY));
      return typeof kept?.token === 'string' ? kept : null;
    } catch {
      return null; // storage is forbidden, or holds something else
    }
  },
  save(resume) {
    try {
      if (resume) sessionStorage.setItem(KEY, JSON.stringify(resume));
      else sessionStorage.removeItem(KEY);
    } catch {
      // Then a reload loses the session.
    }
  },
};

// The tab of past sessions, which the browser keeps. Without IndexedDB there is no tab.

import { filmInfo, isGone } from '../api.js';
import { $, say, set } from '../dom.js';
import { sentence } from '../format.js';
import { HistoryCard } from './card.js';
import { openHistory } from './database.js';
import { deletedWords, failureWords, historyWords } from './history_words.js';
import { Keeper } from './keeper.js';
import { isSpent, mayResume, newestFirst } from './record.js';
import { filmSource } from './replay.js';

const SWITCH = 'fastvideo.history';
const OFF = 'off';

/**
 * What the history does to the page.
 *
 * @typedef {object} Page
 * @property {() => void} offered  is called when there is a history
 * @property {(title: string, text: string) => void} report
 * @property {(idx: number) => Promise<?Blob>} pictureOf  returns a small picture of a segment, once there is one
 * @property {() => boolean} isBusy  whether a session is open
 * @property {(continued: import('../session/restoring.js').Continued) => void} resume
 * @property {(state: import('../protocol.js').ContinuationState) => void} openWith
 */

export class HistoryTab {
  /** @param {Page} page */
  constructor(page) {
    this.page = page;
    this.isShown = false;
    this.isOn = readSwitch();
    /** @type {?Keeper} */
    this.keeper = null;
    /** @type {Map<string, HistoryCard>} */
    this.cards = new Map();
    this.pictured = ''; // the session whose picture is kept
    this.records = [];
    $('keep-history').checked = this.isOn;
    $('keep-history').onchange = ({ target }) => this.turn(target.checked);
    $('history-clear').onclick = () => this.confirmClear(true);
    $('history-clear-no').onclick = () => this.confirmClear(false);
    $('history-clear-yes').onclick = () => this.remove(this.records).catch(({ message }) => say($('history-note'), sentence(message)));
    // Two films at once are of no use to anybody.
    $('past').addEventListener('play', ({ target }) => this.pauseOthers(target), { capture: true });
    addEventListener('storage', ({ key }) => { if (key === SWITCH) this.choose(readSwitch()); });
  }

  /** Opens the history. Where the browser has none, nothing is said: there is nothing that the user has lost. */
  async begin() {
    try {
      const database = await openHistory(indexedDB);
      await database.list();
      this.keeper = new Keeper({
        database,
        now: () => Date.now(),
        isOn: () => this.isOn,
        changed: () => { if (this.isShown) this.refresh(); },
        failed: (reason) => {
          const { title, text } = failureWords(reason);
          this.page.report(title, text);
        },
      });
    } catch {
      return; // a private window, or storage is forbidden
    }
    this.keeper.forgetSpent();
    this.page.offered();
  }

  /** Is called when the tab begins or ceases to be shown. */
  show(isShown) {
    this.isShown = isShown;
    if (isShown) this.refresh();
    else this.pauseOthers(null);
  }

  pauseOthers(video) {
    for (const card of this.cards.values()) if (card.video !== video) card.pause();
  }

  /** Keeps what has changed of the session. @param {import('../state.js').SessionState} state */
  observe(state) {
    this.keeper?.observe(state);
  }

  /** Keeps a picture of the session, once there is one. The player makes it while it plays, and tells nobody. */
  follow(state) {
    if (!this.keeper || this.pictured === state.sessionId) return;
    const first = state.segments.find((segment) => segment.state === 'done');
    if (!first) return;
    const picture = this.page.pictureOf(first.idx);
    if (!picture) return;
    const id = this.pictured = state.sessionId;
    picture.then((blob) => { if (blob) this.keeper.keepThumbnail(id, blob); });
  }

  /** Keeps the media of a finished segment. @param {import('../state.js').SessionState} state @param {number} idx */
  keepMedia(state, idx, media) {
    this.keeper?.observe(state);
    if (media && state.playerMode === 'av_fmp4') this.keeper?.keepMedia(state.sessionId, idx, media);
  }

  /** Keeps a state that the user has saved. */
  keepState(id, state) {
    this.keeper?.keepState(id, state);
  }

  async refresh() {
    try {
      this.records = newestFirst(await this.keeper.database.list());
    } catch {
      say($('history-note'), 'The history cannot be read.');
      return;
    }
    this.render();
    if (this.records.some((record) => isSpent(record, Date.now()))) this.keeper.forgetSpent();
  }

  render() {
    const { records } = this;
    const known = new Set(records.map(({ id }) => id));
    for (const [id, card] of this.cards) {
      if (known.has(id)) continue;
      card.remove();
      this.cards.delete(id);
    }
    records.forEach((record, i) => {
      const card = this.cards.get(record.id) ?? this.addCard(record);
      card.render(record);
      if ($('past').children[i] !== card.root) $('past').insertBefore(card.root, $('past').children[i] ?? null);
    });
    say($('past-count'), records.length ? `${records.length}` : '');
    say($('history-size'), historyWords(records));
    set($('past-empty'), { hidden: records.length > 0 });
    set($('history-clear'), { hidden: !records.length || !$('history-sure').hidden });
    if (!records.length) set($('history-sure'), { hidden: true });
  }

  addCard(record) {
    const card = new HistoryCard(record, {
      source: (of) => filmSource(of, { mediaOf: (id) => this.keeper.database.media(id), forget: (id) => this.keeper.forget(id) }),
      watched: (video) => this.pauseOthers(video),
      goOn: (of) => this.goOn(of),
      remove: (of) => this.remove([of]),
    });
    this.cards.set(record.id, card);
    return card;
  }

  /** Goes on with a session: the server's own record comes first, since it has all of it. */
  async goOn(record) {
    if (this.page.isBusy()) throw new Error('a session is open: leave it first');
    if (mayResume(record, Date.now())) {
      const film = await this.filmOf(record);
      if (film?.resumable || film?.live) return this.page.resume({ token: record.token, isLive: film.live, isAtCap: record.isAtCap });
    }
    const state = record.stateBytes ? await this.keeper.database.state(record.id) : null;
    if (!state) throw new Error('the server does not have this session any more');
    return this.page.openWith(state);
  }

  /** Returns what the server has of a session; null when it does not have it any more. */
  async filmOf({ id, token }) {
    try {
      return await filmInfo(token);
    } catch (error) {
      if (!isGone(error)) throw error;
      this.keeper.forget(id);
      return null;
    }
  }

  async remove(records) {
    const at = this.records.indexOf(records[0]);
    await this.keeper.remove(records.map(({ id }) => id));
    await this.refresh();
    set($('history-sure'), { hidden: true });
    say($('history-note'), deletedWords(records.length));
    const next = this.records[at] ?? this.records.at(-1);
    (next ? this.cards.get(next.id) : $('history-title')).focus();
  }

  confirmClear(asks) {
    set($('history-sure'), { hidden: !asks });
    set($('history-clear'), { hidden: asks });
    $(asks ? 'history-clear-no' : 'history-clear').focus();
  }

  /** Shows the choice, and follows it. Another tab may have made it. */
  choose(on) {
    this.isOn = on;
    set($('keep-history'), { checked: on });
    say($('history-note'), on ? 'Sessions are kept from now on.' : 'Nothing more is kept, nor of a session that runs. What is here stays until you delete it.');
  }

  turn(on) {
    this.choose(on);
    try {
      if (on) localStorage.removeItem(SWITCH);
      else localStorage.setItem(SWITCH, OFF);
    } catch {
      // It holds until the page is left.
    }
  }
}

function readSwitch() {
  try {
    return localStorage.getItem(SWITCH) !== OFF;
  } catch {
    return true;
  }
}

// The storyboard: the shots of a story as fields, the versions that it has had, and what can be done with them. Only what has changed is
// written to the DOM.

import { $, icon, make, mark, say, set } from '../dom.js';
import { plural, sentence } from '../format.js';
import { shotStates } from '../session/story.js';
import { isLive } from '../state.js';
import { MAX_SHOTS, isPlayable, shownVersion } from './storyboard.js';
import { STORIES } from './stories.js';
import { askingWords, shotWords, versionWords } from './story_words.js';

export class BoardView {
  /** @param {(event: import('./storyboard.js').BoardEvent) => void} dispatch */
  constructor(dispatch) {
    this.dispatch = dispatch;
    this.shown = null;
    this.session = null;
    this.rows = [];
    $('stories').append(...STORIES.map((story) => this.chip(story)));
    $('write-shots').onclick = () => dispatch({ type: 'rollout_wanted', prompt: $('prompt').value });
    $('edit-all').onsubmit = (event) => {
      event.preventDefault();
      dispatch({ type: 'edit_wanted', prompt: $('edit-words').value });
    };
    $('story-play').onclick = () => dispatch({ type: 'play_wanted', fresh: false });
    $('story-fresh').onclick = () => dispatch({ type: 'play_wanted', fresh: true });
    $('story-stop').onclick = () => dispatch({ type: 'rollout_stopped' });
    $('story-add').onclick = () => {
      dispatch({ type: 'shot_added', prompt: '' });
      this.rows.at(-1)?.field.focus();
    };
    $('story-close').onclick = () => dispatch({ type: 'closed' });
    $('story-sure-yes').onclick = () => dispatch({ type: 'replacing_confirmed' });
    $('story-sure-no').onclick = () => dispatch({ type: 'replacing_declined' });
  }

  chip(story) {
    const item = make('li');
    const chip = make('button', '', story.title);
    chip.type = 'button';
    chip.title = story.prompts[0];
    chip.onclick = () => this.dispatch({ type: 'story_opened', story });
    item.append(chip);
    return item;
  }

  /** @param {import('./storyboard.js').Board} board @param {import('../state.js').SessionState} session */
  render(board, session) {
    const before = this.shown;
    if (board !== before) this.renderBoard(board, before);
    const isSameSession = this.session && ['phase', 'waiting', 'segments'].every((key) => session[key] === this.session[key]);
    if (board === before && isSameSession) return;
    this.shown = board;
    this.session = session;
    this.renderProgress(board, session);
  }

  renderBoard(board, before) {
    const version = shownVersion(board);
    const { asking, replacing, note, isBad } = board;
    const focused = document.activeElement;
    set($('storyboard'), { hidden: !version && !asking && !note });
    say($('story-name'), board.title ?? '');
    for (const id of ['story-note', 'story-said']) say($(id), asking ? askingWords(asking) : sentence(note));
    set($('story-sure'), { hidden: !replacing });
    mark($('story-note'), { bad: isBad, busy: asking !== null });
    set($('story-stop'), { hidden: !asking });
    for (const id of ['edit-all', 'shots', 'story-play', 'story-add']) set($(id), { hidden: !version });
    set($('story-play'), { disabled: asking !== null || !isPlayable(version) });
    for (const id of ['write-shots', 'edit-send']) set($(id), { disabled: asking !== null });
    if (board.versions !== before?.versions || board.at !== before?.at) this.renderVersions(board);
    this.renderShots(version?.prompts ?? []);
    set($('story-add'), { disabled: (version?.prompts.length ?? 0) >= MAX_SHOTS });
    const answered = !asking && board.made !== before?.made && before?.asking;
    if (answered && answered.isEdit && $('edit-words').value.trim() === answered.prompt) $('edit-words').value = '';
    if (answered && !answered.isEdit) $('storyboard').scrollIntoView({ block: 'nearest' });
    this.keepFocus(board, before, focused);
  }

  /** Sets the focus to the question, and away from what is not there any more. */
  keepFocus({ asking, replacing }, before, focused) {
    if (replacing && replacing !== before?.replacing) {
      $('story-sure').scrollIntoView({ block: 'center' });
      $('story-sure-no').focus({ preventScroll: true });
    } else if (asking && focused?.matches('#write-shots, #edit-send')) {
      $('story-stop').focus();
    } else if (focused?.matches('#storyboard button') && !focused.getClientRects().length) {
      ($('storyboard').hidden ? $('prompt') : $('storyboard-title')).focus();
    }
  }

  /** A version is chosen by a button; there is nothing to choose between one. */
  renderVersions({ versions, at }) {
    const focused = document.activeElement?.dataset?.version;
    set($('versions'), { hidden: versions.length < 2 });
    $('versions').replaceChildren(...versions.map((version, i) => {
      const item = make('li');
      const button = make('button', '', versionWords(version, i));
      button.type = 'button';
      button.title = version.title;
      button.dataset.version = version.id;
      button.setAttribute('aria-pressed', String(i === at));
      button.onclick = () => this.dispatch({ type: 'version_chosen', id: version.id });
      item.append(button);
      return item;
    }));
    if (focused) $('versions').querySelector(`[data-version="${focused}"]`)?.focus();
  }

  renderShots(prompts) {
    say($('shots-count'), prompts.length ? plural(prompts.length, 'shot') : '');
    while (this.rows.length > prompts.length) this.rows.pop().root.remove();
    while (this.rows.length < prompts.length) {
      const row = this.row(this.rows.length);
      this.rows.push(row);
      $('shots').append(row.root);
    }
    prompts.forEach((prompt, i) => {
      const { field, up, down, remove } = this.rows[i];
      if (field.value !== prompt) field.value = prompt;
      set(up, { disabled: i === 0 });
      set(down, { disabled: i === prompts.length - 1 });
      set(remove, { disabled: prompts.length === 1 });
    });
  }

  row(at) {
    const root = make('li');
    root.dataset.testid = `shot-${at}`;
    const field = make('textarea');
    field.rows = 2;
    field.setAttribute('aria-label', `Shot ${at + 1}`);
    field.oninput = () => this.dispatch({ type: 'shot_written', at, prompt: field.value });
    const button = (name, label, act) => {
      const made = make('button', 'icon');
      made.type = 'button';
      made.append(icon(name));
      made.setAttribute('aria-label', `${label} shot ${at + 1}`);
      made.onclick = act;
      return made;
    };
    const up = button('up', 'Move up', () => this.move(at, -1, 'up'));
    const down = button('down', 'Move down', () => this.move(at, 1, 'down'));
    const remove = button('close', 'Remove', () => this.remove(at));
    const state = make('span', 'shot-state');
    const actions = make('span', 'actions');
    actions.append(up, down, remove);
    root.append(make('b', '', String(at + 1)), field, state, actions);
    return { root, field, up, down, remove, state };
  }

  /** Moves a shot. The focus goes with it. */
  move(at, by, name) {
    this.dispatch({ type: 'shot_moved', at, by });
    this.focus(at + by, name);
  }

  remove(at) {
    this.dispatch({ type: 'shot_removed', at });
    this.focus(Math.min(at, this.rows.length - 1), 'remove');
  }

  /** Sets the focus to a button of a shot, or to another one where it cannot be used. */
  focus(at, name) {
    const { [name]: wanted, up, down, field } = this.rows[at];
    [wanted, up, down, field].find(({ disabled }) => !disabled).focus();
  }

  /** Shows what has become of the shots. */
  renderProgress(board, session) {
    const version = shownVersion(board);
    const live = isLive(session);
    set($('story-fresh'), { hidden: !live || !version, disabled: $('story-play').disabled });
    const states = version ? shotStates(session, version.id, version.prompts.length) : [];
    states.forEach((state, i) => {
      mark(this.rows[i].root, { state });
      say(this.rows[i].state, shotWords(state));
    });
  }
}

// The storyboard: the shots of a story as fields, the versions that it has had, and what can be done with them. Only what has changed is
// written to the DOM.

import { $, icon, make, mark, say, set } from '../dom.js';
import { sentence } from '../format.js';
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
    $('write-shots').onclick = () => {
      if (!$('prompt').value.trim()) $('prompt').focus();
      dispatch({ type: 'rollout_wanted', prompt: $('prompt').value });
    };
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
    $('story-close').onclick = () => {
      dispatch({ type: 'closed' });
      $('prompt').focus();
    };
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
    const { asking, note, isBad } = board;
    set($('storyboard'), { hidden: !version && !asking && !note });
    say($('story-name'), board.title ?? '');
    say($('story-note'), asking ? askingWords(asking) : sentence(note));
    mark($('story-note'), { bad: isBad, busy: asking !== null });
    set($('story-stop'), { hidden: !asking });
    for (const id of ['edit-all', 'shots', 'story-play', 'story-add']) set($(id), { hidden: !version });
    set($('story-play'), { disabled: asking !== null || !isPlayable(version) });
    for (const id of ['write-shots', 'edit-send']) set($(id), { disabled: asking !== null });
    if (board.versions !== before?.versions || board.at !== before?.at) this.renderVersions(board);
    this.renderShots(version?.prompts ?? []);
    set($('story-add'), { disabled: (version?.prompts.length ?? 0) >= MAX_SHOTS });
    const isNew = board.made !== before?.made && before;
    if (isNew && before.asking?.isEdit) $('edit-words').value = '';
    if (isNew && before.asking && !before.asking.isEdit) $('storyboard').scrollIntoView({ block: 'nearest' });
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
    say($('shots-count'), prompts.length ? `${prompts.length} shots` : '');
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
    field.onchange = () => this.dispatch({ type: 'shot_written', at, prompt: field.value });
    const button = (name, label, event) => {
      const made = make('button', 'icon');
      made.type = 'button';
      made.append(icon(name));
      made.setAttribute('aria-label', `${label} shot ${at + 1}`);
      made.onclick = () => this.dispatch(event);
      return made;
    };
    const up = button('up', 'Move up', { type: 'shot_moved', at, by: -1 });
    const down = button('down', 'Move down', { type: 'shot_moved', at, by: 1 });
    const remove = button('close', 'Remove', { type: 'shot_removed', at });
    const state = make('span', 'shot-state');
    const actions = make('span', 'actions');
    actions.append(up, down, remove);
    root.append(make('b', '', String(at + 1)), field, state, actions);
    return { root, field, up, down, remove, state };
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

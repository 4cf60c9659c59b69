// @ts-check
// The reducer of the storyboard: the shots of one story, and the versions that it has had. A pure function without access to the DOM, the
// server or a clock.

import { plural } from '../format.js';

/** The number of versions that are kept; the oldest are dropped first. */
export const MAX_VERSIONS = 20;
/** The number of shots that a story may have. */
export const MAX_SHOTS = 24;

/**
 * A version of the story.
 *
 * @typedef {object} Version
 * @property {string} id
 * @property {string} title  what has led to it: the instruction, or how it began
 * @property {string[]} prompts
 * @property {'built_in' | 'model' | 'page' | 'hand'} by  who has written it
 * @property {boolean} [isPlayed]  whether it was played: it does not change any more
 *
 * @typedef {object} Board
 * @property {?string} title  of the story; null while there is none
 * @property {Version[]} versions  the oldest first
 * @property {number} at  the version that is shown
 * @property {number} made  the number of versions so far
 * @property {?{prompt: string, isEdit: boolean, made: number}} asking  what a language model is asked for, and how many versions there
 *   were then
 * @property {?Replacing} replacing  what would throw away versions that the user has written, until they agree
 * @property {?string} note  what is to be said about the latest answer
 * @property {boolean} isBad  whether that is a failure
 *
 * @typedef {import('./rollout.js').Rollout} Rollout
 *
 * @typedef {{type: 'story_opened', story: import('./stories.js').Story}
 *   | {type: 'rollout_wanted', prompt: string}
 *   | {type: 'closed'}} Replacing
 *
 * @typedef {Replacing
 *   | {type: 'edit_wanted', prompt: string}
 *   | {type: 'rollout_came', rollout: Rollout}
 *   | {type: 'rollout_failed', message: string}
 *   | {type: 'rollout_stopped' | 'replacing_confirmed' | 'replacing_declined'}
 *   | {type: 'version_chosen', id: string}
 *   | {type: 'shot_written', at: number, prompt: string}
 *   | {type: 'shot_removed', at: number}
 *   | {type: 'shot_moved', at: number, by: number}
 *   | {type: 'shot_added', prompt: string}
 *   | {type: 'play_wanted', fresh: boolean}} BoardEvent
 *
 * @typedef {{type: 'roll_out', wish: import('./rollout.js').Wish}
 *   | {type: 'stop_rollout' | 'want_prompt'}
 *   | {type: 'play', version: Version, fresh: boolean}} BoardEffect
 */

/** @type {Board} */
export const EMPTY = Object.freeze({ title: null, versions: [], at: 0, made: 0, asking: null, replacing: null, note: null, isBad: false });

/** Returns the version that is shown. @param {Board} board @returns {?Version} */
export const shownVersion = ({ versions, at }) => versions[at] ?? null;

/** Tells whether a version can be played. @param {?Version} version */
export const isPlayable = (version) => version !== null && version.prompts.some((prompt) => prompt.trim());

/**
 * Computes the board after an event. The user is asked before something takes the place of what they have written.
 *
 * @param {Board} board  is not modified
 * @param {BoardEvent} event
 * @returns {{state: Board, effects: BoardEffect[]}}
 */
export function reduceBoard(board, event) {
  const { replacing } = board;
  switch (event.type) {
    case 'story_opened': case 'rollout_wanted': case 'closed': {
      const saysNothing = event.type === 'rollout_wanted' && !event.prompt.trim();
      if (saysNothing || !board.versions.some(({ by }) => by === 'hand')) return handle(board, event);
      return { state: { ...board, replacing: event }, effects: [] };
    }
    case 'replacing_confirmed': return replacing ? handle({ ...board, replacing: null }, replacing) : { state: board, effects: [] };
    case 'replacing_declined': return { state: { ...board, replacing: null }, effects: [] };
    default: return handle(board, event);
  }
}

/** @param {Board} board @param {BoardEvent} event @returns {{state: Board, effects: BoardEffect[]}} */
function handle(board, event) {
  const version = shownVersion(board);
  switch (event.type) {
    case 'story_opened': {
      const { title, prompts } = event.story;
      const opened = begun(board, title, { title: 'As written', prompts: [...prompts], by: 'built_in' });
      return { state: opened, effects: [...stopping(board), playing(shownVersion(opened), false)] };
    }
    case 'rollout_wanted':
      return asked(board, { prompt: event.prompt }, false);
    case 'edit_wanted':
      return version ? asked(board, { prompt: event.prompt, current: said(version.prompts) }, true) : { state: board, effects: [] };
    case 'rollout_came': return { state: board.asking ? answered(board, board.asking, event.rollout) : board, effects: [] };
    case 'rollout_failed':
      return { state: board.asking ? { ...board, asking: null, note: event.message, isBad: true } : board, effects: [] };
    case 'rollout_stopped': return { state: { ...board, asking: null }, effects: stopping(board) };
    case 'version_chosen': return { state: shown(board, board.versions.findIndex(({ id }) => id === event.id)), effects: [] };
    case 'shot_written': return written(board, (prompts) => prompts.map((prompt, i) => (i === event.at ? event.prompt : prompt)));
    case 'shot_removed': return written(board, (prompts) => prompts.filter((_, i) => i !== event.at));
    case 'shot_added': return written(board, (prompts) => (prompts.length < MAX_SHOTS ? [...prompts, event.prompt] : prompts));
    case 'shot_moved': return written(board, (prompts) => moved(prompts, event.at, event.at + event.by));
    case 'play_wanted': {
      if (!version || !isPlayable(version)) return { state: board, effects: [] };
      const versions = board.versions.map((v) => (v === version ? { ...v, isPlayed: true } : v));
      return { state: { ...board, versions }, effects: [playing(version, event.fresh)] };
    }
    case 'closed': return { state: { ...EMPTY, made: board.made }, effects: stopping(board) };
    default: return { state: board, effects: [] };
  }
}

/** @param {?Version} version @param {boolean} fresh @returns {BoardEffect} */
const playing = (version, fresh) => {
  if (!version) throw new Error('a version is shown');
  return { type: 'play', version: { ...version, prompts: said(version.prompts) }, fresh };
};

/** Returns the prompts that say something. @param {string[]} prompts */
const said = (prompts) => prompts.map((prompt) => prompt.trim()).filter(Boolean);

/** @param {Board} board @returns {BoardEffect[]} */
const stopping = ({ asking }) => (asking ? [{ type: 'stop_rollout' }] : []);

/** Begins another story. @param {Board} board @param {string} title @param {Omit<Version, 'id'>} version @returns {Board} */
const begun = (board, title, version) => added({ ...EMPTY, made: board.made, title }, version);

/** Adds a version behind all others, and shows it. @param {Board} board @param {Omit<Version, 'id'>} version @returns {Board} */
function added(board, version) {
  const made = board.made + 1;
  const versions = [...board.versions, { id: `v${made}`, ...version }].slice(-MAX_VERSIONS);
  return { ...board, versions, at: versions.length - 1, made, asking: null, note: null, isBad: false };
}

/**
 * @param {Board} board
 * @param {import('./rollout.js').Wish} wish
 * @param {boolean} isEdit
 * @returns {{state: Board, effects: BoardEffect[]}}
 */
function asked(board, wish, isEdit) {
  const prompt = wish.prompt.trim();
  if (!prompt && !isEdit) return { state: board, effects: [{ type: 'want_prompt' }] };
  if (!prompt) return { state: { ...board, note: 'Say first what is to change.', isBad: false }, effects: [] };
  const state = { ...board, asking: { prompt, isEdit, made: board.made }, note: null, isBad: false };
  return { state, effects: [...stopping(board), { type: 'roll_out', wish: { ...wish, prompt } }] };
}

/**
 * Shows what was written. Another story does not take the place of versions that were written by hand in the meantime.
 *
 * @param {Board} board
 * @param {NonNullable<Board['asking']>} wish
 * @param {Rollout} rollout
 */
function answered(board, { prompt, isEdit, made }, { prompts, label, fallback_used, reason }) {
  const goesOn = isEdit || board.made > made;
  /** @type {Omit<Version, 'id'>} */
  const version = { title: goesOn ? prompt : 'First version', prompts: [...prompts], by: fallback_used ? 'page' : 'model' };
  const next = goesOn ? added({ ...board, title: label ?? (isEdit ? board.title : prompt) }, version) : begun(board, label ?? prompt, version);
  const done = isEdit ? 'The new version is written.' : `${plural(prompts.length, 'shot')} written.`;
  return { ...next, note: fallback_used ? fallbackWords(isEdit, reason) : done };
}

/** @param {boolean} isEdit @param {?string} reason */
function fallbackWords(isEdit, reason) {
  const what = isEdit ? 'Your words stand behind each shot' : 'Each shot has your prompt, and goes on from the one before';
  return `${what}: ${reason ?? 'no language model has answered'}. You can change them here.`;
}

/** @param {Board} board @param {number} at @returns {Board} */
const shown = (board, at) => (board.versions[at] ? { ...board, at, note: null, isBad: false } : board);

/**
 * Changes the shots by hand. The version that was shown stays as it was, unless it was written by hand as the latest one and not played
 * since. What a language model is asked for is still waited for.
 *
 * @param {Board} board
 * @param {(prompts: string[]) => string[]} change
 * @returns {{state: Board, effects: BoardEffect[]}}
 */
function written(board, change) {
  const version = shownVersion(board);
  const prompts = version && change(version.prompts);
  if (!version || !prompts || same(prompts, version.prompts)) return { state: board, effects: [] };
  const isLatest = version.by === 'hand' && !version.isPlayed && board.at === board.versions.length - 1;
  if (!isLatest) return { state: { ...added(board, { title: 'Edited by hand', prompts, by: 'hand' }), asking: board.asking }, effects: [] };
  const versions = board.versions.map((v) => (v === version ? { ...v, prompts } : v));
  return { state: { ...board, versions }, effects: [] };
}

/** @param {string[]} a @param {string[]} b */
const same = (a, b) => a.length === b.length && a.every((prompt, i) => prompt === b[i]);

/** @param {string[]} prompts @param {number} from @param {number} to */
function moved(prompts, from, to) {
  if (prompts[from] === undefined || to < 0 || to >= prompts.length) return prompts;
  const others = prompts.filter((_, i) => i !== from);
  return [...others.slice(0, to), prompts[from], ...others.slice(to)];
}

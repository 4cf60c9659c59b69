// @ts-check
// Keeps the storyboard in the session storage, so that a reload of the tab does not lose what was written.

import { EMPTY } from './storyboard.js';

const STORED = 'fastvideo.storyboard';

/**
 * Returns the board of this tab before a reload.
 *
 * @param {() => Storage} storage  throws where the browser keeps nothing
 * @returns {import('./storyboard.js').Board}
 */
export function loadBoard(storage) {
  try {
    const board = JSON.parse(storage().getItem(STORED) ?? 'null');
    return Array.isArray(board?.versions) && board.versions[board.at] ? { ...EMPTY, ...board, asking: null, replacing: null } : EMPTY;
  } catch {
    return EMPTY;
  }
}

/** @param {() => Storage} storage @param {import('./storyboard.js').Board} board */
export function saveBoard(storage, board) {
  try {
    if (board.versions.length) storage().setItem(STORED, JSON.stringify({ ...board, asking: null, replacing: null }));
    else storage().removeItem(STORED);
  } catch {
    forget(storage);
  }
}

/** Storage is forbidden, or full: the storyboard does not survive a reload, and an older one must not take its place. @param {() => Storage} storage */
function forget(storage) {
  try {
    storage().removeItem(STORED);
  } catch {
    // There is nothing in it.
  }
}

// @ts-check
// The texts of the storyboard. This file has no access to the DOM.

const LONGEST_TITLE = 34;

/** @type {{[state: string]: string}} */
const SHOT_WORDS = {
  queued: 'waits', denoising: 'being made', streaming: 'streaming', restarting: 'starts again', interrupted: 'interrupted', done: 'made',
  cancelled: 'cancelled', failed: 'failed',
};

/** Tells what has become of a shot; empty while nothing has. @param {string} state */
export const shotWords = (state) => (Object.hasOwn(SHOT_WORDS, state) ? SHOT_WORDS[state] : '');

/** Names a version. @param {import('./storyboard.js').Version} version @param {number} i */
export function versionWords({ title }, i) {
  const short = title.length > LONGEST_TITLE ? `${title.slice(0, LONGEST_TITLE - 1).trimEnd()}…` : title;
  return `${i + 1}. ${short}`;
}

/** Tells that the shots are being written. @param {{isEdit: boolean}} asking */
export const askingWords = ({ isEdit }) => (isEdit ? 'A new version is being written…' : 'Six shots are being written…');

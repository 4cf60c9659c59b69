// @ts-check
// The film of a session in the history: from the browser, or from the server as long as it has it.

import { filmAddress, filmInfo, isGone } from '../api.js';
import { Film } from '../film.js';
import { isWhole } from './record.js';

/**
 * @typedef {import('./record.js').HistoryRecord} HistoryRecord
 * @typedef {import('./database.js').KeptMedia} KeptMedia
 */

/** Joins the media that are kept to one file. @param {readonly KeptMedia[]} kept @returns {Promise<Blob>} */
export function fileOf(kept) {
  const film = new Film(() => []);
  for (const { idx, blob, initBytes } of kept) film.media.set(idx, { mime: null, messages: [], blob, initBytes, bytes: blob.size });
  return film.file(kept.map(({ idx }) => idx));
}

/**
 * Returns an address from which the film is played or saved; `revokeObjectURL` frees what belongs to it. Throws an error where nothing of
 * the film is left.
 *
 * @param {HistoryRecord} record
 * @param {{mediaOf: (id: string) => Promise<KeptMedia[]>, forget: (id: string) => void}} hooks  `forget` is called when the server does not
 *   have the session any more
 */
export async function filmSource(record, { mediaOf, forget }) {
  const { token, watchToken } = record;
  const atServer = !isWhole(record) && token && await filmInfo(token).catch((error) => {
    if (isGone(error)) forget(record.id);
    return null;
  });
  if (token && atServer && atServer.mime?.startsWith('video/') && atServer.segments.every(({ kept }) => kept)) {
    // An address may be logged: the token in it should not allow more than it has to.
    return filmAddress({ ...token, token: watchToken ?? token.token }, nameOf(record));
  }
  const kept = await mediaOf(record.id);
  if (!kept.length) throw new Error('the film of this session is not kept any more');
  return URL.createObjectURL(await fileOf(kept));
}

/** Returns a file name. @param {HistoryRecord} record */
export const nameOf = ({ id }) => `fastvideo-${id.slice(0, 8)}.mp4`;

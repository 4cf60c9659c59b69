// The files of a job, as elements and downloads take them. An element shows no key to the server, so that with one the file is
// fetched as a whole and the element gets a copy of it.

import { showsKey } from '../api.js';
import { save, saveFrom } from '../dom.js';
import { videoAddress, videoFile } from './requests.js';

/**
 * Returns an address for an element. `revokeObjectURL` frees what belongs to it, and leaves a plain address alone.
 *
 * @param {string} id
 * @param {import('./requests.js').Variant} variant
 * @returns {Promise<string>}
 */
export async function elementAddress(id, variant) {
  return showsKey() ? URL.createObjectURL(await videoFile(id, variant)) : videoAddress(id, variant);
}

/** Offers a video for download. @param {string} id */
export async function download(id) {
  const name = `${id}.mp4`;
  if (showsKey()) save(await videoFile(id, 'video'), name);
  else saveFrom(videoAddress(id, 'video'), name);
}

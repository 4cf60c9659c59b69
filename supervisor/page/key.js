// @ts-check
// The key that the page shows to a server that asks for one. It comes in the page's address behind `#key=`, which browsers send to
// nobody, and stays in the tab.

const STORED = 'fastvideo.key';

/**
 * Takes the key out of the address, so that nobody copies it from there, and keeps it for as long as the tab lives.
 *
 * @param {() => Storage} storage  throws where the browser keeps nothing
 * @param {Location} location
 * @param {History} history
 * @returns {string}  empty where there is none
 */
export function takeKey(storage, location, history) {
  const given = new URLSearchParams(location.hash.slice(1)).get('key');
  if (given) history.replaceState(history.state, '', location.pathname + location.search);
  try {
    if (given) storage().setItem(STORED, given);
    return storage().getItem(STORED) ?? '';
  } catch {
    return given ?? '';
  }
}

/** Returns the subprotocols that show a key. @param {string} key @returns {string[]} */
export const subprotocols = (key) => (key ? ['fastvideo.v1', `fastvideo.key.${key}`] : []);

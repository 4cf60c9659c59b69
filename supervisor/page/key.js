// @ts-check
// The key that the page shows to a server that asks for one. It comes in the page's address behind `#key=`, which browsers send to
// nobody, or is typed in, and stays in the tab. A WebSocket shows a ticket in its place, which nobody can use again.

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

/**
 * Keeps a key that was typed in for as long as the tab lives.
 *
 * @param {() => Storage} storage  throws where the browser keeps nothing
 * @param {string} key
 */
export function keepKey(storage, key) {
  try {
    storage().setItem(STORED, key);
  } catch {
    // It is asked for again after a reload.
  }
}

/**
 * A WebSocket that is opened with a ticket, which has to be fetched before. Where there is none, the key itself is shown, and the
 * server says over the socket what is wrong with it.
 */
export class KeySocket {
  /**
   * @param {URL} url
   * @param {string} key
   * @param {() => Promise<string>} fetchTicket
   * @param {(url: URL, protocols: string[]) => WebSocket} open
   */
  constructor(url, key, fetchTicket, open) {
    this.binaryType = /** @type {BinaryType} */ ('blob');
    /** @type {WebSocket | null} */
    this.socket = null;
    this.isClosed = false;
    /** @type {((event: any) => void) | null} */
    this.onopen = this.onmessage = this.onclose = null;
    fetchTicket().then((ticket) => {
      const withTicket = new URL(url);
      withTicket.searchParams.set('ticket', ticket);
      return /** @type {const} */ ([withTicket, []]);
    }, () => /** @type {const} */ ([url, subprotocols(key)])).then(([to, protocols]) => this.begin(open(to, [...protocols])));
  }

  /** @param {WebSocket} socket */
  begin(socket) {
    if (this.isClosed) return socket.close();
    this.socket = socket;
    socket.binaryType = this.binaryType;
    socket.onopen = (event) => this.onopen?.(event);
    socket.onmessage = (event) => this.onmessage?.(event);
    socket.onclose = (event) => this.onclose?.(event);
  }

  get readyState() {
    return this.socket?.readyState ?? (this.isClosed ? 3 : 0);
  }

  get bufferedAmount() {
    return this.socket?.bufferedAmount ?? 0;
  }

  /** @param {string} data */
  send(data) {
    this.socket?.send(data);
  }

  /** @param {number} [code] @param {string} [reason] */
  close(code, reason) {
    if (this.socket) return this.socket.close(code, reason);
    if (this.isClosed) return;
    this.isClosed = true;
    queueMicrotask(() => this.onclose?.({ code: 1006, reason: '' }));
  }
}

/** Returns the subprotocols that show a key. @param {string} key @returns {string[]} */
export const subprotocols = (key) => (key ? ['fastvideo.v1', `fastvideo.key.${key}`] : []);

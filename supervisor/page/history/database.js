// @ts-check
// The history in the browser's IndexedDB: a record for each session, the media of its segments, and its continuation state.

const NAME = 'fastvideo.history';
const VERSION = 1;

/**
 * The media of a segment.
 *
 * @typedef {object} KeptMedia
 * @property {string} id  the session's
 * @property {number} idx
 * @property {Blob} blob
 * @property {number} initBytes  the size of the init segment at the start of `blob`
 *
 * @typedef {import('./record.js').HistoryRecord} HistoryRecord
 */

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
const result = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

/** Opens the history. Throws where the browser keeps nothing. @param {IDBFactory} factory @returns {Promise<HistoryDatabase>} */
export async function openHistory(factory) {
  const opening = factory.open(NAME, VERSION);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore('sessions', { keyPath: 'id' });
    opening.result.createObjectStore('media', { keyPath: ['id', 'idx'] });
    opening.result.createObjectStore('states', { keyPath: 'id' });
  };
  const database = await result(opening);
  database.onversionchange = () => database.close(); // a newer page in another tab
  return new HistoryDatabase(database);
}

export class HistoryDatabase {
  /** @param {IDBDatabase} database */
  constructor(database) {
    this.database = database;
  }

  /** @returns {Promise<HistoryRecord[]>} */
  async list() {
    return result(this.database.transaction('sessions').objectStore('sessions').getAll());
  }

  /**
   * Changes the record of a session, with what is stored beside it, as a whole.
   *
   * @param {string} id
   * @param {(record: HistoryRecord | undefined) => HistoryRecord | undefined} change
   * @param {{media?: KeptMedia, state?: import('../protocol.js').ContinuationState}} [beside]
   */
  change(id, change, { media, state } = {}) {
    return this.write((store) => {
      const sessions = store('sessions');
      const reading = sessions.get(id);
      reading.onsuccess = () => {
        const record = change(reading.result);
        if (!record) return;
        sessions.put(record);
        if (media) store('media').put(media);
        if (state) store('states').put({ id, state });
      };
    });
  }

  /** Returns the media of a session, in the order of the segments. @param {string} id @returns {Promise<KeptMedia[]>} */
  async media(id) {
    return result(this.database.transaction('media').objectStore('media').getAll(allOf(id)));
  }

  /** @param {string} id @returns {Promise<?import('../protocol.js').ContinuationState>} */
  async state(id) {
    return (await result(this.database.transaction('states').objectStore('states').get(id)))?.state ?? null;
  }

  /** @param {readonly string[]} ids */
  remove(ids) {
    return this.write((store) => {
      for (const id of ids) {
        for (const name of ['sessions', 'states']) store(name).delete(id);
        store('media').delete(allOf(id));
      }
    });
  }

  /** Runs one transaction. @param {(store: (name: string) => IDBObjectStore) => void} run @returns {Promise<void>} */
  write(run) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(['sessions', 'media', 'states'], 'readwrite');
      transaction.oncomplete = () => resolve();
      // The error of a request comes first, and the transaction does not tell yet what it is.
      transaction.onabort = () => reject(transaction.error ?? new Error('the browser has not stored it'));
      run((name) => transaction.objectStore(name));
    });
  }
}

/** @param {string} id */
const allOf = (id) => IDBKeyRange.bound([id], [id, []]);

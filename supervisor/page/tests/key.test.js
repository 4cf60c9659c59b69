// The key that the page shows.

import assert from 'node:assert/strict';
import test from 'node:test';

import { KeySocket, subprotocols, takeKey } from '../key.js';

/** A tab that remembers what it is told. */
function tab(hash) {
  const kept = new Map();
  const shown = [];
  return {
    storage: () => ({ setItem: (name, value) => kept.set(name, value), getItem: (name) => kept.get(name) ?? null }),
    location: { hash, pathname: '/page/', search: '?a=b' },
    history: { state: null, replaceState: (_state, _title, address) => shown.push(address) },
    shown,
  };
}

test('the key leaves the address and stays in the tab', () => {
  const { storage, location, history, shown } = tab('#key=fvk_one');
  assert.equal(takeKey(storage, location, history), 'fvk_one');
  assert.deepEqual(shown, ['/page/?a=b']);
  location.hash = '';
  assert.equal(takeKey(storage, location, history), 'fvk_one');
  assert.deepEqual(shown, ['/page/?a=b']);
});

test('without a key there is none, and a browser that keeps nothing has it once', () => {
  const none = tab('#other');
  assert.equal(takeKey(none.storage, none.location, none.history), '');
  assert.deepEqual(none.shown, []);
  const { location, history } = tab('#key=fvk_one');
  const refuses = () => { throw new Error('no storage'); };
  assert.equal(takeKey(refuses, location, history), 'fvk_one');
});

test('a key is shown beside the protocol that the server speaks', () => {
  assert.deepEqual(subprotocols('fvk_one'), ['fastvideo.v1', 'fastvideo.key.fvk_one']);
  assert.deepEqual(subprotocols(''), []);
});

/** A socket that the page would open. */
function opener() {
  const opened = [];
  return { opened, open: (url, protocols) => (opened.push({ url: String(url), protocols, closed: 0, sent: [], close() { this.closed += 1; }, send(data) { this.sent.push(data); } }), opened.at(-1)) };
}

const URL_OF = new URL('ws://host/v1/stream');

test('a socket is opened with a ticket, and the key is in no address', async () => {
  const { opened, open } = opener();
  const socket = new KeySocket(URL_OF, 'fvk_one', async () => 'once', open);
  assert.equal(socket.readyState, 0);
  await new Promise(setImmediate);
  assert.equal(opened[0].url, 'ws://host/v1/stream?ticket=once');
  assert.deepEqual(opened[0].protocols, []);
  let heard = 0;
  socket.onopen = () => { heard += 1; };
  opened[0].onopen();
  socket.send('hello');
  assert.deepEqual([heard, opened[0].sent], [1, ['hello']]);
});

test('without a ticket the key is shown, so that the server says what is wrong with it', async () => {
  const { opened, open } = opener();
  new KeySocket(URL_OF, 'fvk_one', async () => { throw new Error('refused'); }, open);
  await new Promise(setImmediate);
  assert.equal(opened[0].url, 'ws://host/v1/stream');
  assert.deepEqual(opened[0].protocols, ['fastvideo.v1', 'fastvideo.key.fvk_one']);
});

test('a socket that is closed before its ticket has come is never opened for long', async () => {
  const { opened, open } = opener();
  const socket = new KeySocket(URL_OF, 'fvk_one', async () => 'late', open);
  const closed = [];
  socket.onclose = ({ code }) => closed.push(code);
  socket.close();
  await new Promise(setImmediate);
  assert.deepEqual(closed, [1006]);
  assert.equal(opened[0]?.closed ?? 1, 1);
});

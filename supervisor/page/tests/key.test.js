// The key that the page shows.

import assert from 'node:assert/strict';
import test from 'node:test';

import { subprotocols, takeKey } from '../key.js';

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

// Tests of the connection, with a fake socket and a fake clock.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { BACKOFF, Connection, TokenStore, backoffMs, canResume, closeReason } from '../connection.js';
import { initialState } from '../state.js';
import { Clock } from './clock.js';

class Socket {
  constructor() {
    this.readyState = 0;
    this.sent = [];
    this.closedWith = null;
  }

  opens() {
    this.readyState = 1;
    this.onopen();
  }

  send(text) { this.sent.push(text); }

  close(code) {
    this.closedWith ??= code ?? 'no code';
    this.readyState = 2;
  }

  closes(code, reason = '') {
    this.readyState = 3;
    this.onclose({ code, reason });
  }
}

function setUp() {
  const sockets = [];
  const events = [];
  const clock = new Clock();
  const openSocket = () => {
    sockets.push(new Socket());
    return sockets.at(-1);
  };
  const connection = new Connection(openSocket, (event) => events.push(event), { clock });
  return { connection, sockets, events, clock };
}

describe('connection', () => {
  test('sends the opening message first, and only while it is open', () => {
    const { connection, sockets } = setUp();
    connection.send({ type: 'leave' });
    connection.connect('first');
    connection.send({ type: 'leave' });
    sockets[0].opens();
    connection.send({ type: 'snapshot_state' });
    assert.deepEqual(sockets[0].sent, ['first', '{"type":"snapshot_state"}']);
  });

  test('tells messages and media apart, and ignores what is neither', () => {
    const { connection, sockets, events } = setUp();
    connection.connect('first');
    sockets[0].opens();
    for (const data of ['{"type":"x"}', new Uint8Array([1, 2]).buffer, 'no json', 'null', '[]', '7', '{"type":1}']) sockets[0].onmessage({ data });
    assert.deepEqual(events, [{ type: 'message', message: { type: 'x' } }, { type: 'media', bytes: new Uint8Array([1, 2]) }]);
  });

  test('says why it was closed', () => {
    const { connection, sockets, events } = setUp();
    connection.connect('first');
    sockets[0].opens();
    sockets[0].closes(1013, 'full');
    assert.deepEqual(events, [{ type: 'closed', reason: 'busy', code: 1013, text: 'full' }]);
  });

  test('does not wait for minutes for a server that does not answer', () => {
    const { connection, sockets, events, clock } = setUp();
    connection.connect('first');
    clock.advance(9_999);
    assert.equal(sockets[0].closedWith, null);
    clock.advance(1);
    assert.equal(sockets[0].closedWith, 'no code');
    sockets[0].closes(1006);
    assert.equal(events[0].reason, 'unreachable');
    assert.equal(clock.timers.size, 0);
  });

  test('leaves no timer behind once it is closed', () => {
    const { connection, sockets, clock } = setUp();
    connection.connect('first');
    sockets[0].opens();
    sockets[0].closes(1000);
    assert.equal(clock.timers.size, 0);
  });

  test('is given up when nothing is received for 30 s, also without a word from the socket', () => {
    const { connection, sockets, events, clock } = setUp();
    connection.connect('first');
    sockets[0].opens();
    clock.advance(29_999);
    sockets[0].onmessage({ data: '{"type":"heartbeat"}' });
    clock.advance(29_999);
    assert.deepEqual(events.map((event) => event.type), ['message']);
    clock.advance(1);
    assert.deepEqual(events.at(-1), { type: 'closed', reason: 'broken', code: 1006, text: '' });
    assert.equal(clock.timers.size, 0);
  });

  test('waits longer while a snapshot is on its way', () => {
    const { connection, sockets, events, clock } = setUp();
    connection.connect('first');
    sockets[0].opens();
    connection.send({ type: 'snapshot_state' });
    clock.advance(299_999);
    assert.deepEqual(events, []);
    clock.advance(1);
    assert.equal(events.at(-1).reason, 'broken');
  });

  test('is silent once it was dropped', () => {
    const { connection, sockets, events, clock } = setUp();
    connection.connect('first');
    sockets[0].opens();
    connection.drop();
    sockets[0].onmessage({ data: '{"type":"x"}' });
    sockets[0].closes(1000);
    connection.scheduleReconnect(1);
    connection.drop();
    clock.advance(60_000);
    assert.deepEqual(events.map((e) => e.type), ['reconnect_scheduled']);
  });

  test('closes the socket that another one replaces so that the server keeps the GPU', () => {
    const { connection, sockets, events } = setUp();
    connection.connect('a');
    sockets[0].opens();
    connection.connect('b');
    assert.equal(sockets[0].closedWith, 4000);
    sockets[0].closes(1000);
    assert.deepEqual(events, []);
  });

  test('frees the GPU where the user ends the connection', () => {
    const { connection, sockets } = setUp();
    connection.connect('a');
    sockets[0].opens();
    connection.close();
    assert.equal(sockets[0].closedWith, 1000);
  });
});

describe('reconnection', () => {
  test('announces the next attempt, and then that it is due', () => {
    const { connection, events, clock } = setUp();
    clock.time = 100;
    connection.scheduleReconnect(3);
    assert.deepEqual(events, [{ type: 'reconnect_scheduled', dueAt: 2100 }]);
    clock.advance(1999);
    assert.equal(events.length, 1);
    clock.advance(1);
    assert.deepEqual(events[1], { type: 'reconnect_due' });
  });

  test('is due once when the user does not wait for it', () => {
    const { connection, events, clock } = setUp();
    connection.scheduleReconnect(1);
    connection.connect('now');
    clock.advance(5_000);
    assert.deepEqual(events.map((e) => e.type), ['reconnect_scheduled']);
  });

  test('backs off exponentially up to a limit', () => {
    const pauses = [1, 2, 3, 4, 5, 6, 7, 1000].map((attempt) => backoffMs(attempt, 0));
    assert.deepEqual(pauses, [500, 1000, 2000, 4000, 8000, 10_000, 10_000, 10_000]);
  });

  test('takes some of the pause away by chance', () => {
    assert.equal(backoffMs(1, 1), 500 * (1 - BACKOFF.jitter));
  });
});

test('close codes have reasons, and a connection that was never open has one of its own', () => {
  const reasons = [1000, 1001, 1003, 1005, 1006, 1008, 1009, 1011, 1012, 1013, 4000].map((code) => closeReason(code, true));
  assert.deepEqual(reasons, [
    'ended', 'going_away', 'rejected', 'no_status', 'broken', 'rule_broken', 'too_large', 'internal', 'restarting', 'busy', 'other',
  ]);
  assert.equal(closeReason(1006, false), 'unreachable');
});

test('a session outlives a connection that broke, and not one that the server ended', () => {
  const all = ['unreachable', 'ended', 'going_away', 'rejected', 'no_status', 'broken', 'rule_broken', 'too_large', 'internal', 'restarting', 'busy', 'other'];
  const lost = ['unreachable', 'going_away', 'no_status', 'broken', 'restarting'];
  assert.deepEqual(all.filter((reason) => canResume(reason, false, false)), lost);
  assert.deepEqual(all.filter((reason) => canResume(reason, false, true)).sort(), [...lost, 'busy'].sort());
  assert.deepEqual(all.filter((reason) => canResume(reason, true, false)).sort(), [...lost, 'busy', 'internal'].sort());
});

describe('resume token', () => {
  const storage = (items = new Map()) => ({
    items, getItem: (key) => items.get(key) ?? null, setItem: (key, value) => items.set(key, value), removeItem: (key) => items.delete(key),
  });

  test('is kept and forgotten', () => {
    const kept = storage();
    const tokens = new TokenStore(() => kept);
    assert.equal(tokens.load(), null);
    tokens.save({ session_id: 's', token: 't' });
    assert.deepEqual(tokens.load(), { session_id: 's', token: 't' });
    tokens.save(null);
    assert.equal(kept.items.size, 0);
  });

  test('is not needed for the curated prompts, which outlive the session', () => {
    const kept = storage();
    const tokens = new TokenStore(() => kept);
    assert.equal(tokens.loadCurated(), '');
    const state = initialState();
    tokens.remember({ ...state, settings: { ...state.settings, curated: 'one\ntwo' } }, 0);
    assert.deepEqual([tokens.loadCurated(), tokens.load()], ['one\ntwo', null]);
    tokens.save(null);
    assert.equal(tokens.loadCurated(), 'one\ntwo');
    tokens.remember(state, 0);
    assert.equal(kept.items.size, 0);
  });

  test('is nothing where storage is forbidden or holds something else', () => {
    const forbidden = new TokenStore(() => { throw new Error('SecurityError'); });
    forbidden.save({ session_id: 's', token: 't' });
    forbidden.remember(initialState(), 0);
    assert.deepEqual([forbidden.load(), forbidden.loadCurated()], [null, '']);
    for (const text of ['no json', 'null', '{"token": 1}']) {
      assert.equal(new TokenStore(() => storage(new Map([['fastvideo.session', text]]))).load(), null, text);
    }
  });
});

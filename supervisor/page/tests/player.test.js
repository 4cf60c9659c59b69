// Tests of the MP4 player with a browser's media source of their own, in which one byte is one second.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, mock, test } from 'node:test';

import { Film } from '../film.js';
import { MsePlayer } from '../player/mse_player.js';

const SECONDS = 10; // of each segment

class Video extends EventTarget {
  constructor() {
    super();
    Object.assign(this, { time: 0, paused: true, muted: false, seeking: false, ended: false, readyState: 4, error: null, seeks: [] });
  }

  get currentTime() { return this.time; }
  set currentTime(time) {
    this.time = time;
    this.seeks.push(time);
  }

  get buffered() {
    const ranges = Source.last?.ranges ?? [];
    return { length: ranges.length, start: (i) => ranges[i][0], end: (i) => ranges[i][1] };
  }

  hasAttribute() { return false; }
  async play() {
    this.paused = false;
    this.dispatchEvent(new Event('playing'));
  }

  pause() { this.paused = true; }
}

/** A media source whose buffer holds `room` messages. A message has its position in seconds as its first byte. */
class Source extends EventTarget {
  static isTypeSupported() { return true; }

  constructor() {
    super();
    Object.assign(this, { readyState: 'open', held: new Set(), room: Infinity, tried: 0, appended: [], ended: 0 });
    Source.last = this;
    Source.all.push(this);
  }

  get ranges() {
    const ranges = [];
    for (const at of [...this.held].sort((a, b) => a - b)) {
      if (ranges.at(-1)?.[1] === at) ranges.at(-1)[1] += 1;
      else ranges.push([at, at + 1]);
    }
    return ranges;
  }

  addSourceBuffer() {
    const source = this;
    const later = () => setImmediate(() => buffer.dispatchEvent(new Event('updateend')));
    const buffer = Object.assign(new EventTarget(), {
      appendBuffer(bytes) {
        source.tried += 1;
        if (source.held.size + bytes.length > source.room) throw Object.assign(new Error('full'), { name: 'QuotaExceededError' });
        if (bytes.includes(Source.unreadable)) {
          setImmediate(() => buffer.dispatchEvent(new Event('error')));
          return;
        }
        for (const at of bytes) source.held.add(at);
        source.appended.push([...bytes]);
        source.readyState = 'open';
        later();
      },
      remove(from, to) {
        for (const at of source.held) if (at >= from && at < to) source.held.delete(at);
        later();
      },
      abort() {},
      changeType() {},
    });
    Object.defineProperty(buffer, 'buffered', { get: () => new Video().buffered });
    return buffer;
  }

  endOfStream() {
    this.readyState = 'ended';
    this.ended += 1;
  }
}

beforeEach(() => {
  Source.all = [];
  Source.last = Source.unreadable = null;
  globalThis.window = { MediaSource: Source };
  globalThis.document = { hidden: true };
  mock.method(URL, 'createObjectURL', () => 'blob:');
  mock.method(URL, 'revokeObjectURL', () => {});
  mock.method(console, 'info', () => {});
  mock.method(console, 'warn', () => {});
  mock.timers.enable({ apis: ['setInterval', 'Date'] });
});

afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

/** A page with a player. Each segment has ten seconds, and a message for each of them. */
function page({ fetch = null, bytes = SECONDS } = {}) {
  const places = [];
  const failures = [];
  let now = 0;
  mock.method(performance, 'now', () => now);
  const film = new Film(() => places, () => fetch, () => now);
  const player = new MsePlayer(new Video(), film, { failed: (text) => failures.push(text) });
  const rest = async () => { for (let i = 0; i < 400; i += 1) await new Promise((done) => { setImmediate(done); }); };
  const messages = (idx) => Array.from({ length: SECONDS }, (_, i) => new Uint8Array([idx * SECONDS + i]));
  return {
    places, failures, film, player, rest, messages,
    get source() { return Source.last; },
    get video() { return player.video; },
    begin(idx, count = SECONDS) {
      places.push({ idx, state: 'streaming', start: idx * SECONDS, duration: 0, bytes });
      film.begin(idx, 'video/mp4');
      player.startSegment(idx, 'video/mp4');
      this.add(idx, 0, count);
    },
    add(idx, from, to) {
      for (const message of messages(idx).slice(from, to)) {
        film.add(idx, message);
        player.added(idx, null);
      }
    },
    finish(idx) {
      Object.assign(places.find((place) => place.idx === idx), { state: 'done', duration: SECONDS });
      film.finish(idx);
      player.wake();
    },
    /** A segment that was not received. */
    hole(idx) {
      places.push({ idx, state: 'done', start: idx * SECONDS, duration: SECONDS, bytes });
    },
    async has(...segments) {
      for (const idx of segments) {
        this.begin(idx);
        await rest();
        this.finish(idx);
        await rest();
      }
    },
    /** Lets the clock run while the viewer's position is where the browser has left it. */
    async wait(ms) {
      for (let at = 0; at < ms; at += 200) {
        now += 200;
        mock.timers.tick(200);
        await rest();
      }
    },
  };
}

test('messages are appended in their order, and the end of the film is told', async () => {
  const at = page();
  await at.has(0, 1);
  assert.deepEqual(at.source.appended.flat(), Array.from({ length: 20 }, (_, i) => i));
  assert.equal(at.source.ended, 0);
  at.player.finish();
  await at.rest();
  assert.deepEqual([at.source.ended, at.player.end, at.video.paused], [1, 20, false]);
});

test('a full buffer is tried again by one timer, however many fragments come', async () => {
  const at = page();
  at.begin(0, 2);
  at.source.room = 2;
  await at.rest();
  for (let i = 2; i < SECONDS; i += 1) {
    at.add(0, i, i + 1);
    await at.rest();
  }
  const { tried } = at.source;
  assert.ok(tried <= 4, `${tried}`);
  await at.wait(1000);
  assert.equal(at.source.tried, tried + 5);
  at.source.room = Infinity;
  await at.wait(200);
  assert.equal(at.source.appended.length, SECONDS);
  assert.deepEqual(at.failures, []);
});

test('what was evicted is there again when the viewer goes back', async () => {
  const at = page();
  at.player.feeder.limits = { aheadSeconds: 30, behindSeconds: 20, bytes: Infinity };
  await at.has(0, 1, 2, 3);
  at.video.time = 39;
  await at.has(4, 5);
  await at.wait(200);
  assert.deepEqual(at.player.ranges(), [[10, 60]]);
  at.player.seek(3);
  assert.equal(at.player.time, 3);
  await at.rest();
  assert.equal(at.video.currentTime, 3);
  assert.deepEqual(at.player.ranges(), [[0, 40]]);
  at.video.time = 25;
  await at.wait(200);
  assert.deepEqual(at.player.ranges(), [[0, 60]]);
});

test('a segment that was never received is fetched', async () => {
  const asked = [];
  const fetch = async (idx) => {
    asked.push(idx);
    return new Uint8Array(Array.from({ length: SECONDS }, (_, i) => idx * SECONDS + i));
  };
  const at = page({ fetch });
  await at.has(0);
  at.hole(1);
  await at.has(2);
  assert.deepEqual([asked, at.player.ranges()], [[1], [[0, 30]]]);
});

test('a segment of which only a part was received is fetched, and appended from its beginning', async () => {
  const at = page({ fetch: async (idx) => new Uint8Array(Array.from({ length: SECONDS }, (_, i) => idx * SECONDS + i)) });
  await at.has(0);
  at.begin(1, 4);
  await at.rest();
  Object.assign(at.places[1], { state: 'done', duration: 0 }); // the server has finished it
  at.player.wake();
  await at.rest();
  assert.deepEqual(at.player.ranges(), [[0, 20]]);
  assert.equal(at.source.appended.length, 15);
});

test('a gap that nothing fills is skipped', async () => {
  const at = page();
  await at.has(0);
  at.hole(1);
  await at.has(2);
  at.video.time = 9.99;
  await at.wait(1000);
  assert.equal(at.video.currentTime, 20.001);
});

test('a film that is shown before its media are here starts at the asked position', async () => {
  const at = page({ fetch: async (idx) => new Uint8Array(Array.from({ length: SECONDS }, (_, i) => idx * SECONDS + i)) });
  for (const idx of [0, 1, 2]) at.hole(idx);
  at.player.open();
  at.player.seek(15);
  await at.wait(200);
  assert.deepEqual([at.video.currentTime, at.player.ranges()], [15, [[10, 30]]]);
});

test('a source that is closed is replaced, and playback goes on at the same time', async () => {
  const at = page();
  await at.has(0, 1);
  at.video.time = 12;
  at.source.readyState = 'closed';
  at.source.dispatchEvent(new Event('sourceclose'));
  at.video.time = 0; // a new source begins at 0
  await at.wait(200);
  assert.equal(Source.all.length, 2);
  assert.deepEqual([at.video.currentTime, at.player.ranges(), at.failures], [12, [[10, 20]], []]);
});

test('a browser that cannot play it at all is told of once', async () => {
  const at = page();
  await at.has(0);
  for (let i = 0; i < 9; i += 1) {
    at.video.error = { code: 3 };
    at.video.dispatchEvent(new Event('error'));
    await at.rest();
  }
  assert.equal(at.failures.length, 1);
  assert.match(at.failures[0], /^The browser could not play it\. Reload/);
});

test('a segment that the browser cannot read is left out after another try', async () => {
  const at = page({ fetch: async (idx) => new Uint8Array(Array.from({ length: SECONDS }, (_, i) => idx * SECONDS + i)) });
  Source.unreadable = 15;
  for (const idx of [0, 1, 2]) at.hole(idx);
  at.player.open();
  await at.wait(200);
  assert.deepEqual([Source.all.length, at.player.ranges(), at.video.currentTime], [3, [[0, 10], [20, 30]], 0]);
  at.video.time = 9.99;
  await at.wait(600);
  assert.deepEqual([at.video.currentTime, at.failures], [20.001, []]);
});

test('a segment that is made again takes the place of the old one, and the viewer waits where it was', async () => {
  const at = page();
  await at.has(0);
  at.begin(1, 5);
  await at.rest();
  at.video.time = 13;
  at.film.drop(1);
  at.player.cut(1, 10, true);
  await at.rest();
  assert.deepEqual([at.player.ranges(), at.player.time, at.video.paused], [[[0, 10]], 13, true]);
  at.add(1, 0, 6);
  await at.rest();
  assert.deepEqual([at.player.ranges(), at.video.currentTime, at.video.paused], [[[0, 16]], 13, false]);
});

test('a player that is reset does not try the old media again', async () => {
  const at = page();
  at.begin(0);
  at.source.room = 0;
  await at.rest();
  const old = at.source;
  at.player.reset();
  at.film.clear();
  at.places.length = 0;
  const { tried } = old;
  await at.wait(5000);
  assert.equal(old.tried, tried);
  await at.has(0);
  assert.notEqual(at.source, old);
  assert.equal(at.source.appended.length, SECONDS);
});

test('a player is starved when it plays and media are missing', async () => {
  const at = page();
  assert.equal(at.player.starved, false, 'nothing has played yet');
  await at.has(0);
  assert.equal(at.player.starved, false);
  at.video.time = 9.95;
  assert.equal(at.player.starved, true);
  at.video.time = 5;
  at.video.readyState = 2;
  assert.equal(at.player.starved, true);
  at.player.pause();
  assert.equal(at.player.starved, false);
});

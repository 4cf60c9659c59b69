// Tests of the MP4 player with a media source of their own.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, mock, test } from 'node:test';

import { MsePlayer } from '../player.js';

/** A video element whose buffer holds as many appends as it is told. */
class Video extends EventTarget {
  constructor() {
    super();
    Object.assign(this, { currentTime: 0, paused: true, muted: false, seeking: false, ended: false, readyState: 4, ranges: [] });
  }

  get buffered() {
    const { ranges } = this;
    return { length: ranges.length, start: (i) => ranges[i][0], end: (i) => ranges[i][1] };
  }

  hasAttribute() { return false; }
  async play() { this.paused = false; }
  pause() { this.paused = true; }
}

class Source extends EventTarget {
  static isTypeSupported() { return true; }

  constructor() {
    super();
    this.readyState = 'open';
    Source.last = this;
  }

  addSourceBuffer() {
    this.buffer = Object.assign(new EventTarget(), {
      updating: false,
      room: 1,
      tried: 0,
      appended: 0,
      appendBuffer() {
        this.tried += 1;
        if (this.appended >= this.room) throw Object.assign(new Error('full'), { name: 'QuotaExceededError' });
        this.appended += 1;
      },
    });
    return this.buffer;
  }
}

beforeEach(() => {
  globalThis.window = { MediaSource: Source };
  mock.method(URL, 'createObjectURL', () => 'blob:');
  mock.method(URL, 'revokeObjectURL', () => {});
  mock.timers.enable({ apis: ['setTimeout'] });
});

afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

function playing() {
  const failures = [];
  const player = new MsePlayer(new Video(), { failed: (text) => failures.push(text), segmentStart: () => 0, ended: () => false });
  player.startSegment(0, 'video/mp4');
  return { player, buffer: Source.last.buffer, failures };
}

test('a full buffer is tried again by one timer, however many fragments come', () => {
  const { player, buffer, failures } = playing();
  for (let i = 0; i < 100; i += 1) player.append(0, new Uint8Array(1));
  assert.equal(buffer.tried, 2);
  for (let second = 0; second < 60; second += 1) {
    for (let i = 0; i < 20; i += 1) player.append(0, new Uint8Array(1));
    mock.timers.tick(500);
    mock.timers.tick(500);
  }
  assert.equal(buffer.tried, 2 + 120);
  // The viewer plays on, and everything is appended in its order.
  buffer.room = Infinity;
  mock.timers.tick(500);
  assert.equal(buffer.appended, 100 + 60 * 20);
  mock.timers.tick(60_000);
  assert.equal(buffer.tried, 2 + 120 + 100 + 60 * 20 - 1);
  assert.deepEqual(failures, []);
});

test('a player that is reset does not try the old media again', () => {
  const { player, buffer } = playing();
  player.append(0, new Uint8Array(1));
  player.append(0, new Uint8Array(1));
  player.reset();
  mock.timers.tick(5000);
  assert.equal(buffer.tried, 2);
  player.startSegment(0, 'video/mp4');
  player.append(0, new Uint8Array(1));
  assert.equal(Source.last.buffer.appended, 1);
});

test('a player is starved when it plays and media are missing', () => {
  const { player } = playing();
  const { video } = player;
  assert.equal(player.starved, false, 'nothing has played yet');
  video.ranges = [[0, 10]];
  video.dispatchEvent(new Event('playing'));
  assert.equal(player.starved, false);
  video.currentTime = 9.95;
  assert.equal(player.starved, true);
  video.currentTime = 5;
  video.readyState = 2;
  assert.equal(player.starved, true);
  player.pause();
  assert.equal(player.starved, false);
});

// Tests of the player's decisions: what is buffered, and how a player goes on that stands.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { isInside, LIMITS, overlap, planBuffer } from '../player/plan.js';
import { rescue, Watchdog } from '../player/watchdog.js';

const MIB = 1024 * 1024;

/** A film of segments of ten seconds. `buffered` lists those in the buffer. */
const film = (count, { mib = 1, buffered = [], without = [] } = {}) => Array.from({ length: count }, (_, idx) => ({
  idx, start: idx * 10, end: idx * 10 + 10, bytes: mib * MIB, buffered: buffered.includes(idx),
  more: !buffered.includes(idx) && !without.includes(idx),
}));

describe('the plan of the buffer', () => {
  const check = (spans, time, append, remove) => {
    const plan = planBuffer(spans, time);
    assert.deepEqual([plan.append?.idx, plan.remove?.idx], [append, remove]);
  };

  test('is to append what the viewer sees next', () => {
    check([], 0, undefined, undefined);
    check(film(3), 0, 0, undefined);
    check(film(3), 25, 2, undefined);
    check(film(3, { buffered: [0, 1] }), 5, 2, undefined);
    check(film(3, { buffered: [0, 1, 2] }), 5, undefined, undefined);
    check(film(3, { buffered: [0], without: [1] }), 5, 2, undefined);
  });

  test('ends two minutes ahead', () => {
    const buffered = Array.from({ length: 12 }, (_, idx) => idx);
    check(film(40, { buffered }), 0, undefined, undefined);
    check(film(40, { buffered }), 5, 12, undefined);
  });

  test('keeps two minutes behind', () => {
    const buffered = Array.from({ length: 30 }, (_, idx) => idx);
    check(film(30, { buffered }), 295, undefined, 0);
    check(film(30, { buffered: buffered.slice(17) }), 295, undefined, undefined);
  });

  test('leaves a part of the bytes to what is behind', () => {
    const mib = LIMITS.bytes / MIB / 8;
    check(film(20, { mib, buffered: [8, 9, 10, 11, 12, 13, 14, 15] }), 105, undefined, undefined);
    check(film(20, { mib, buffered: [7, 8, 9, 10, 11, 12, 13, 14] }), 105, 15, 7);
  });

  test('has the segment where the viewer is, however large it is', () => check(film(3, { mib: 500 }), 15, 1, undefined));

  test('removes what is far ahead after the viewer has gone back', () => {
    check(film(60, { buffered: [50, 51, 52] }), 0, 0, 50);
  });

  test('takes rounded times for what they are', () => check(film(3, { buffered: [0] }), 9.97, 1, undefined));
});

test('ranges are measured', () => {
  assert.deepEqual([isInside([[0, 3]], 3), isInside([[1, 3]], 1), isInside([], 0)], [false, true, false]);
  assert.deepEqual([overlap([[0, 3], [5, 9]], 2, 6), overlap([], 0, 9)], [2, 0]);
});

describe('the watchdog', () => {
  const watch = (...sights) => {
    const dog = new Watchdog();
    return sights.map(([now, time, frames, playing = true]) => Object.values(dog.observe({ now, time, frames, playing }))).at(-1);
  };

  test('measures for how long the clock stands', () => {
    assert.deepEqual(watch([0, 1, 5], [200, 1, 5], [400, 1, 5]), [400, 0]);
    assert.deepEqual(watch([0, 1, 5], [200, 1, 5], [400, 1.2, 9]), [0, 0]);
  });

  test('measures for how long the picture stands while the clock runs', () => {
    assert.deepEqual(watch([0, 1, 5], [1000, 2, 5], [2000, 3, 5]), [0, 2000]);
    assert.deepEqual(watch([0, 1, 5], [1000, 2, 30], [2000, 3, 54]), [0, 0]);
    assert.deepEqual(watch([0, 1, 5], [9000, 1, 5]), [9000, 0]);
  });

  test('does not judge pictures that nobody sees, nor a player that has paused', () => {
    assert.deepEqual(watch([0, 1, null], [2000, 3, null]), [0, 0]);
    assert.deepEqual(watch([0, 1, 5], [5000, 1, 5, false], [5200, 1, 5]), [0, 0]);
  });
});

describe('the rescue of a player that stands', () => {
  const check = (sight, ...expected) => {
    const found = rescue({ time: 5, ranges: [[0, 10]], stuckMs: 0, frozenMs: 0, coming: false, streaming: false, hidden: false, seeking: false, nudges: 0, ...sight });
    assert.deepEqual([found.type, ...('to' in found ? [found.to] : [])], expected);
  };

  test('is not needed while it plays, or has nothing to play', () => {
    check({}, 'none');
    check({ time: 9.95, stuckMs: 60_000 }, 'none');
    check({ ranges: [], stuckMs: 60_000 }, 'none');
  });

  test('is a seek to where it is, and then another media source', () => {
    check({ stuckMs: 200 }, 'none');
    check({ stuckMs: 300 }, 'nudge', 5.001);
    check({ stuckMs: 300, nudges: 1 }, 'none');
    check({ stuckMs: 1200, nudges: 2 }, 'nudge', 5.001);
    check({ stuckMs: 2400, nudges: 3 }, 'reattach');
    check({ frozenMs: 1500 }, 'nudge', 5.001);
    check({ frozenMs: 1500, nudges: 3 }, 'reattach');
  });

  test('leaves a seek its time, and a hidden page alone', () => {
    check({ stuckMs: 3000, seeking: true }, 'none');
    check({ stuckMs: 60_000, hidden: true }, 'none');
  });

  test('lets media collect while they arrive, unless the viewer has waited for long', () => {
    check({ time: 9, stuckMs: 600, streaming: true }, 'none');
    check({ time: 8.5, stuckMs: 600, streaming: true }, 'nudge', 8.501);
    check({ time: 9.8, stuckMs: 2000, streaming: true }, 'nudge', 9.801);
    check({ time: 9, stuckMs: 600, streaming: true, ranges: [[0, 10], [20, 30]] }, 'nudge', 9.001);
  });

  test('skips a gap, and waits before that for media that may come', () => {
    const ranges = [[0, 5], [8, 12]];
    check({ ranges, stuckMs: 200 }, 'none');
    check({ ranges, stuckMs: 300 }, 'jump', 8.001);
    check({ ranges, stuckMs: 7000, coming: true }, 'none');
    check({ ranges, stuckMs: 8000, coming: true }, 'jump', 8.001);
    check({ ranges, time: 4.95, stuckMs: 400 }, 'jump', 8.001);
    check({ ranges, time: 12, stuckMs: 60_000 }, 'none');
  });
});

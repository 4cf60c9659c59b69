// Tests of the spectators' reducer.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { initialWatchState, nextSegment, reduceWatch } from '../watch_session.js';
import { emptyWords, watchStarvedWords, watchStatusWords } from '../words.js';

const KEY = { session_id: 's1', token: 'w1' };
const told = (idx) => ({
  segment_idx: idx, start_ms: idx * 3000, duration_ms: 3000, bytes: 5, kept: true, thumbnail: true, prompt: `p${idx}`, original_prompt: null,
  prompt_source: 'user', attempt: 1, generation_time_ms: 9,
});
const film = (count, live = true) => ({ session_id: 's1', mime: 'video/mp4', fps: 24, live, segments: Array.from({ length: count }, (_, idx) => told(idx)) });

class Spectator {
  constructor() {
    this.state = initialWatchState(KEY);
    this.effects = [];
    this.event('open');
  }

  event(type, fields = {}) {
    const { state, effects } = reduceWatch(this.state, { type, ...fields }, 1000);
    this.state = state;
    this.effects.push(...effects);
    return this;
  }

  says(type, fields = {}) { return this.event('message', { message: { type, ...fields } }); }
  loads(info, refused = false) { return this.event('film_loaded', { film: info, refused }); }
  starts(idx, fields = {}) { return this.says('ltx2_segment_start', { segment_idx: idx, prompt: `p${idx}`, total_steps: 4, source: 'user', attempt: 1, ...fields }); }
  streams(idx, ...sizes) {
    this.says('media_init', { segment_idx: idx, mime: 'video/mp4' });
    for (const size of sizes) this.event('media', { bytes: new Uint8Array(size) });
    return this;
  }

  ran(type) { return this.effects.filter((effect) => effect.type === type); }
  get states() { return this.state.segments.map((s) => s.state); }

  static live(count = 2) {
    return new Spectator().loads(film(count)).says('watch_start', { session_id: 's1', live: true, mime: 'video/mp4', fps: 24, from: count });
  }
}

describe('a spectator', () => {
  test('sees the latest scene, and then what is being made', () => {
    const page = Spectator.live();
    assert.deepEqual(page.ran('show_film'), [{ type: 'show_film', mime: 'video/mp4', fps: 24, pictures: [0, 1], position: 3 }]);
    assert.deepEqual([page.ran('connect').length, nextSegment(page.state)], [1, 2]);
    page.starts(2).streams(2, 10, 20).says('media_segment_complete', { segment_idx: 2, duration_ms: 3000, pts_base_ms: 6000 });
    assert.equal(watchStatusWords(page.state)[1], 'Live: segment 3');
    page.says('film_segment', told(2));
    assert.deepEqual([page.states, page.ran('finish_media')], [['done', 'done', 'done'], [{ type: 'finish_media', idx: 2 }]]);
    assert.deepEqual([page.state.segments[2].start, nextSegment(page.state)], [6, 3]);
    assert.deepEqual(page.ran('send'), []);
  });

  test('connects again from the segment that it lacks, whose media follow from their beginning', () => {
    const page = Spectator.live().starts(2).streams(2, 10, 20).event('closed', { reason: 'broken', code: 1006, text: '' });
    assert.deepEqual([page.state.phase, page.states[2], watchStarvedWords(page.state)], ['lost', 'interrupted', 'Waiting for the connection']);
    assert.deepEqual(page.ran('schedule_reconnect'), [{ type: 'schedule_reconnect', attempt: 1 }]);
    page.event('reconnect_due').loads(film(2));
    assert.deepEqual([page.ran('connect').length, nextSegment(page.state)], [2, 2]);
    page.says('watch_start', { session_id: 's1', live: true, mime: 'video/mp4', from: 2 }).starts(2);
    assert.deepEqual(page.ran('void_media'), [{ type: 'void_media', idx: 2, from: 6, again: true }]);
  });

  test('tries again while the server does not answer, and not when it refuses', () => {
    const page = new Spectator().loads(null).event('reconnect_due').loads(null);
    assert.deepEqual(page.ran('schedule_reconnect').map((e) => e.attempt), [1, 2]);
    page.event('reconnect_due').loads(null, true);
    assert.deepEqual([page.state.phase, emptyWords(page.state).title], ['closed', 'This link does not work.']);
    assert.equal(page.event('reconnect_due').state.phase, 'closed');
  });

  test('that is too slow gets the rest of a segment from the film', () => {
    const page = Spectator.live().starts(2).streams(2, 10).says('watch_skipped', { segment_idx: 3 });
    assert.equal(page.ran('load_film').length, 2);
    page.loads(film(3));
    assert.deepEqual([page.states, page.state.segments[2].here, page.state.segments[2].duration], [['done', 'done', 'done'], false, 3]);
    page.starts(3).streams(3, 10);
    assert.deepEqual(page.ran('add_media').map((e) => e.idx), [2, 3]);
  });

  test('drops what it has of a segment that starts again', () => {
    const page = Spectator.live().starts(2).streams(2, 10).says('error', { code: 'worker_failed', restarting: true, segment_idx: 2 });
    assert.equal(page.states[2], 'restarting');
    page.starts(2, { attempt: 2 });
    assert.deepEqual(page.ran('void_media').map((e) => [e.idx, e.again]), [[2, true]]);
  });

  test('is told of the end, and plays on', () => {
    const page = Spectator.live().says('watch_end').event('closed', { reason: 'ended', code: 1000, text: '' });
    assert.equal(watchStatusWords(page.state)[1], 'The film has ended');
    assert.deepEqual([page.ran('finish_player').length, page.ran('schedule_reconnect')], [1, []]);
    page.loads(null, true);
    assert.equal(page.state.phase, 'complete', 'although the link was renewed');
  });

  test('sees a film that has ended from its beginning', () => {
    const page = new Spectator().loads(film(2, false));
    assert.deepEqual([page.state.phase, page.ran('connect'), page.ran('show_film')[0].position], ['complete', [], null]);
  });

  test('ignores what it does not know', () => {
    const page = Spectator.live();
    const { state } = page;
    assert.equal(page.says('from_the_future').event('viewed').state, state);
  });
});

// Tests of the reducer: what the page has of a film, what the server keeps of it, and the ends of a session.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { isUnsaved } from '../state.js';
import { PageModel, TOKEN } from './page_model.js';

const RECORDING = { recording: true, max_cap_extensions: 0 };
const UNTIL = '1970-01-01T01:00:00Z'; // the tests' clock begins in 1970

const told = (idx, prompt, fields = {}) => ({
  segment_idx: idx, start_ms: idx * 1000, duration_ms: 1000, bytes: 5, messages: 3, kept: true, thumbnail: true, prompt, original_prompt: null,
  prompt_source: 'user', attempt: 1, generation_time_ms: 9, ...fields,
});
const film = (prompts, fields = {}) => ({
  session_id: 's1', mime: 'video/mp4', fps: 24, live: true, resumable: true, segments: prompts.map((prompt, idx) => told(idx, prompt)), ...fields,
});

const recorded = (limits = RECORDING) => {
  const page = new PageModel().event('connect').opens({ limits });
  page.effects = [];
  return page;
};
const loads = (page, info) => page.event('film_loaded', { sessionId: 's1', film: info });
const requests = (page) => page.sent.filter((m) => m.type === 'segment_prompt_source').map((m) => m.prompt);
const states = (page) => page.state.segments.map((s) => [s.idx, s.state, s.here]);

/** Receives the messages of a segment that is sent again. */
function replays(page, idx, prompt, sizes, fields = {}) {
  page.starts(idx, prompt, { replayed: true, ...fields }).says('media_init', { segment_idx: idx, mime: 'video/mp4' });
  return page.media(...sizes).completes(idx);
}

describe('a connection that is lost', () => {
  test('is resumed with what the page has', () => {
    const page = recorded().submit('a').submit('b').starts(0, 'a').streams(0).completes(0).starts(1, 'b').streams(1).media(30);
    page.closes('broken', 1006).event('reconnect_due');
    assert.deepEqual(page.opening.resume, { ...TOKEN, have: { segments: 1, messages: 3 } });
  });

  test('tells an older server nothing that it does not know', () => {
    const page = PageModel.active().submit('a').starts(0, 'a').streams(0).completes(0).closes('broken', 1006).event('reconnect_due');
    assert.deepEqual(page.opening.resume, TOKEN);
    assert.deepEqual(page.sent.filter((m) => m.type === 'media_received'), []);
    assert.equal('extend' in page.opening, false);
  });

  test('gets the rest of a segment, and asks for no prompt that the server has run', () => {
    const page = recorded().submit('a').submit('b').submit('c').starts(0, 'a', { request_id: 'p1' }).streams(0);
    page.closes('broken', 1006).event('reconnect_due');
    page.effects = [];
    page.opens({ next: 2, limits: RECORDING });
    assert.deepEqual(requests(page), [], 'there is more to come');
    replays(page, 0, 'a', [30]);
    assert.deepEqual(page.ran('void_media'), []);
    assert.deepEqual(page.ran('add_media').map((e) => [e.idx, e.bytes.length]), [[0, 30]]);
    replays(page, 1, 'b', [10, 20, 30], { request_id: 'p2' });
    assert.deepEqual(requests(page), ['c']);
    assert.deepEqual(states(page), [[0, 'done', true], [1, 'done', true]]);
    assert.deepEqual(page.sent.filter((m) => m.type === 'media_received').map((m) => [m.segment_idx, m.messages]), [[0, 3], [1, 3]]);
  });

  test('asks again for what the server has not finished', () => {
    const page = recorded().submit('a').starts(0, 'a').streams(0).closes('broken', 1006).event('reconnect_due').opens({ next: 0, limits: RECORDING });
    assert.deepEqual(requests(page), ['a', 'a']);
    page.starts(0, 'a');
    assert.deepEqual(page.ran('void_media').map((e) => [e.idx, e.again]), [[0, true]]);
  });

  const isLost = (page, idx) => page.says('error', { code: 'internal_error', message: 'not kept any more', retryable: false, segment_idx: idx });

  test('learns from the film what the server has lost', () => {
    const page = recorded().submit('a').submit('b').submit('c').submit('d').starts(0, 'a', { request_id: 'p1' }).streams(0).completes(0);
    page.closes('broken', 1006).event('reconnect_due');
    page.effects = [];
    isLost(page.opens({ next: 3, limits: RECORDING }), 1);
    assert.deepEqual(page.ran('load_film'), [{ type: 'load_film', key: TOKEN }]);
    replays(page, 2, 'c', [10, 20], { request_id: 'p3' });
    assert.deepEqual(requests(page), [], 'one of them may have been the lost one');
    loads(page, film(['a', 'b']));
    assert.deepEqual([requests(page), states(page)], [['d'], [[0, 'done', true], [1, 'done', false], [2, 'done', true]]]);
    assert.equal(page.state.notice.title, 'A part of the film is lost.');
  });

  test('goes on when the server does not tell its film', () => {
    const page = recorded().submit('a').submit('b').starts(0, 'a').streams(0).closes('broken', 1006).event('reconnect_due');
    page.effects = [];
    loads(isLost(page.opens({ next: 1, limits: RECORDING }), 0), null);
    assert.deepEqual([requests(page), states(page)], [['b'], [[0, 'done', false]]]);
    assert.equal(page.segment.duration, 1);
  });

  test('waits no longer for what is sent again once something new begins', () => {
    const page = recorded().submit('a').submit('b').starts(0, 'a').streams(0).closes('broken', 1006).event('reconnect_due');
    page.effects = [];
    page.opens({ next: 1, limits: RECORDING }).starts(1, 'x', { source: 'curated' });
    assert.deepEqual([requests(page), page.state.segments[0].state], [['b'], 'done']);
  });

  test('ignores the media of a segment that is here', () => {
    const page = recorded().starts(0, 'a').streams(0).completes(0).closes('broken', 1006).event('reconnect_due').opens({ next: 1, limits: RECORDING });
    page.effects = [];
    replays(page, 0, 'a', [10, 20]);
    assert.deepEqual(page.effects, []);
  });

  test('puts a segment that is sent again into its place', () => {
    const page = recorded().starts(0, 'a').streams(0).completes(0).closes('broken', 1006).event('reconnect_due').opens({ next: 3, limits: RECORDING });
    replays(page, 2, 'c', [10, 20]);
    page.effects = [];
    replays(page, 1, 'b', [10, 20]);
    assert.deepEqual(page.state.segments.map((s) => s.prompt), ['a', 'b', 'c']);
    assert.deepEqual(page.ran('add_media').map((e) => e.idx), [1, 1]);
  });
});

describe('a reload of the tab', () => {
  const request = (id, prompt) => ({ id, prompt, message: { type: 'segment_prompt_source', prompt, source: 'user', request_id: id }, at: 7, sent: true });
  const kept = { ...TOKEN, waiting: [request('p3', 'c')], asked: { ...request('p2', 'b'), idx: 1 }, position: 0.5 };

  test('brings back the film, the prompts and the requests', () => {
    const page = new PageModel({ kept }).event('connect_kept');
    assert.deepEqual(page.ran('connect'), []);
    loads(page, film(['a']));
    assert.deepEqual(page.opening.resume, { ...TOKEN, have: { segments: 1, messages: 0 } });
    assert.deepEqual(page.ran('show_film'), [{ type: 'show_film', mime: 'video/mp4', fps: 24, pictures: [0], position: 0.5 }]);
    page.opens({ next: 1, limits: RECORDING });
    assert.deepEqual([requests(page), page.state.segments.map((s) => s.prompt)], [['b', 'c'], ['a']]);
    assert.equal(page.ran('reset_player').length, 1, 'before the film');
    page.submit('d');
    assert.equal(page.sent.at(-1).request_id, 'p4');
  });

  test('extends a session that had ended by its cap', () => {
    const page = new PageModel({ kept: { ...kept, outcome: 'segment_cap' } }).event('connect_kept');
    assert.equal(loads(page, film(['a'])).opening.extend, true);
  });

  test('does not ask for a segment that was finished meanwhile', () => {
    const page = new PageModel({ kept }).event('connect_kept');
    loads(page, film(['a', 'b'])).opens({ next: 2, limits: RECORDING });
    assert.deepEqual(requests(page), ['c']);
  });

  test('goes on without the film when the server keeps none', () => {
    const page = new PageModel({ kept: TOKEN }).event('connect_kept');
    loads(page, null);
    assert.deepEqual(page.opening.resume, TOKEN);
  });

  test('goes on with JPEG frames without those that were shown', () => {
    const page = new PageModel({ kept: TOKEN }).event('connect_kept');
    loads(page, film(['a'], { mime: 'image/jpeg' }));
    assert.deepEqual([page.opening.stream_mode, page.opening.resume, page.state.segments], ['legacy_jpeg', TOKEN, []]);
  });

  test('shows the film of a session that cannot be resumed', () => {
    const page = new PageModel({ kept }).event('connect_kept');
    loads(page, film(['a'], { live: false, resumable: false }));
    assert.deepEqual([page.state.phase, page.state.notice.title, page.state.resume], ['complete', 'The session has ended.', null]);
    assert.deepEqual(page.ran('return_prompt'), [{ type: 'return_prompt', prompt: 'b' }]);
    assert.deepEqual([page.state.filmKey, page.ran('connect')], [TOKEN, []]);
  });

  test('can be given up while the film is loaded', () => {
    const page = new PageModel({ kept }).event('connect_kept').event('leave');
    assert.equal(page.state.phase, 'closed');
    loads(page, film(['a']));
    assert.deepEqual(page.ran('connect'), []);
  });
});

describe('a prompt after the end', () => {
  const ended = (reason, fields, limits = RECORDING) => recorded(limits).starts(0, 'a').streams(0).completes(0)
    .says('ltx2_stream_complete', { reason, ...fields }).closes('ended', 1000);
  const left = (fields) => recorded().starts(0, 'a').streams(0).completes(0).event('leave')
    .says('ltx2_stream_complete', { reason: 'stop_requested', ...fields }).closes('ended', 1000);

  test('goes on with a session that was left', () => {
    const page = left({ resumable_until: UNTIL }).submit('b');
    assert.equal(page.opening.resume.session_id, 's1');
    assert.equal('extend' in page.opening, false);
    page.opens({ next: 1, limits: RECORDING });
    assert.deepEqual([requests(page), page.state.segments.length], [['b'], 1]);
  });

  test('extends a session that has ended by its cap, also over a second connection', () => {
    const page = ended('segment_cap', { resumable_until: UNTIL }, { recording: true, max_cap_extensions: 1 }).submit('b');
    assert.equal(page.opening.extend, true);
    page.closes('broken', 1006).event('reconnect_due');
    assert.equal(page.opening.extend, true);
    page.opens({ next: 1, limits: RECORDING }).closes('broken', 1006).event('reconnect_due');
    assert.equal('extend' in page.opening, false);
  });

  test('needs consent to a new session when this one cannot go on', () => {
    const late = left({ resumable_until: UNTIL });
    late.now = 3_600_001;
    for (const page of [late, left({}), ended('segment_cap', { resumable_until: UNTIL })]) {
      page.effects = [];
      page.submit('b');
      assert.deepEqual([page.effects, page.state.asking.prompt], [[], 'b']);
      assert.deepEqual(page.event('new_session_declined').state.asking, null);
      page.submit('b').event('new_session_confirmed');
      assert.equal(page.opening.resume, null);
      assert.deepEqual(page.ran('clear_prompt').length, 1);
      page.opens({ id: 's2', token: 't2' });
      assert.deepEqual([requests(page), page.state.segments], [['b'], []]);
    }
  });

  test('needs none when a state was chosen for a new session', () => {
    const page = left({}).event('attachments_changed', { image: null, state: { kind: 'ltx2.v1', payload: {} } }).submit('b');
    assert.deepEqual([page.state.asking, page.opening.resume], [null, null]);
  });
});

test('a film that is only here is unsaved until it was downloaded', () => {
  const page = PageModel.active();
  assert.equal(isUnsaved(page.state), false);
  page.starts(0, 'a').streams(0).completes(0);
  assert.equal(isUnsaved(page.state), true);
  assert.equal(isUnsaved(page.event('downloaded').state), false);
  page.starts(1, 'b').streams(1).completes(1);
  assert.equal(isUnsaved(page.state), true);
  assert.equal(isUnsaved(recorded().starts(0, 'a').streams(0).completes(0).state), false);
});

test('a session that is gone has no link for spectators, and a film that is not kept', () => {
  const page = new PageModel().event('connect').says('gpu_assigned', {
    gpu_id: 0, session_id: 's1', resume_token: 't1', watch_token: 'w1',
  }).says('ltx2_stream_start', { width: 128, height: 96, fps: 24, num_frames: 24, next_segment_idx: 0, limits: RECORDING });
  page.submit('a').starts(0, 'a').streams(0).completes(0).closes('broken', 1006);
  assert.deepEqual([page.state.watchToken, isUnsaved(page.state)], ['w1', false]);
  page.event('reconnect_due').says('error', { code: 'session_rejected', message: 'no such session', retryable: false });
  page.closes('rejected', 1003);
  assert.equal(page.state.watchToken, null);
  assert.deepEqual(page.ran('load_film'), [{ type: 'load_film', key: TOKEN }]);
  assert.equal(isUnsaved(page.event('film_loaded', { sessionId: 's1', film: null }).state), true);
});

test('the link for spectators is there when the server has them', () => {
  const page = recorded().says('gpu_assigned', { gpu_id: 0, session_id: 's1', resume_token: 't1', watch_token: 'w1' });
  assert.equal(page.state.watchToken, 'w1');
  page.says('spectators', { count: 3 }).event('watch_link_renewed');
  assert.deepEqual([page.state.spectators, page.sent.at(-1)], [3, { type: 'renew_watch_token' }]);
  page.says('watch_token', { watch_token: 'w2' });
  assert.equal(page.state.watchToken, 'w2');
  assert.match(page.state.watchNote, /^The old link/);
  assert.equal(PageModel.active().state.watchToken, null);
});

// Tests of the reducer: stories that are played, and the time that a session has left.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { shotStates } from '../session/story.js';
import { hasUnsaved } from '../state.js';
import { askWords, timeLeftWords } from '../words.js';
import { PageModel } from './page_model.js';

const SHOTS = ['one', 'two', 'three', 'four', 'five', 'six'];
const sampling = { negative_prompt: null, seed: null, num_inference_steps: null, guidance_scale: null };
const play = (fields = {}) => ({ id: 'v1', prompts: SHOTS, source: 'user', fresh: false, sampling, ...fields });
const plays = (page, fields) => page.event('story_played', { play: play(fields) });
const asked = (page) => page.sent.filter((m) => m.type === 'segment_prompt_source').map((m) => m.prompt);

describe('a story', () => {
  test('opens a session and asks for its shots in order', () => {
    const page = plays(new PageModel());
    assert.equal(page.state.phase, 'connecting');
    page.opens();
    assert.deepEqual(asked(page), SHOTS);
    assert.deepEqual(page.waiting, SHOTS);
  });

  test('sends no more than may wait, and the rest as places get free', () => {
    const page = plays(new PageModel()).opens({ limits: { max_waiting_requests: 2 } });
    assert.deepEqual(asked(page), ['one', 'two']);
    page.starts(0, 'one', { request_id: 'p1' });
    assert.deepEqual(asked(page), ['one', 'two', 'three']);
    page.streams(0).completes(0).starts(1, 'two', { request_id: 'p2' });
    assert.deepEqual(asked(page), ['one', 'two', 'three', 'four']);
  });

  test('tells what has become of each shot', () => {
    const page = plays(new PageModel()).opens();
    page.starts(0, 'one', { request_id: 'p1' }).streams(0).completes(0).starts(1, 'two', { request_id: 'p2' });
    page.event('request_withdraw', { id: 'p6' }).says('request_withdrawn', { request_id: 'p6' });
    assert.deepEqual(shotStates(page.state, 'v1', 6), ['done', 'denoising', 'queued', 'queued', 'queued', '']);
    assert.deepEqual(shotStates(page.state, 'v2', 1), ['']);
    page.says('ltx2_segment_start', { segment_idx: 1, prompt: 'two', total_steps: 4, source: 'user', attempt: 2 });
    assert.equal(shotStates(page.state, 'v1', 2)[1], 'denoising');
  });

  test('follows in the session that runs, in the place of what waited of the version before', () => {
    const page = plays(PageModel.active());
    page.starts(0, 'one', { request_id: 'p1' }).submit('mine');
    plays(page, { id: 'v2', prompts: ['night'] });
    const withdrawn = page.sent.filter((m) => m.type === 'withdraw_request').map((m) => m.request_id);
    assert.deepEqual(withdrawn, ['p2', 'p3', 'p4', 'p5', 'p6']);
    for (const id of withdrawn) page.says('request_withdrawn', { request_id: id });
    assert.deepEqual(page.waiting, ['mine', 'night']);
  });

  test('asks before it takes the place of a session that has no room for it', () => {
    const page = new PageModel().event('connect').opens({ cap: 6 });
    page.starts(0, 'a').streams(0).completes(0);
    plays(page);
    assert.equal(askWords(page.state).title, 'The session has no room for all shots.');
    page.event('new_session_confirmed');
    assert.deepEqual(page.sent.at(-1), { type: 'leave' });
    page.says('ltx2_stream_complete', { reason: 'stop_requested' }).closes('ended', 1000);
    assert.equal(page.state.phase, 'connecting');
    assert.equal(page.opening.resume, null);
    page.opens({ id: 's2', cap: 6 });
    assert.deepEqual(page.waiting, SHOTS);
    assert.deepEqual(page.state.segments, []);
  });

  test('is not begun when the user keeps the session', () => {
    const page = new PageModel().event('connect').opens({ cap: 2 }).starts(0, 'a');
    plays(page).event('new_session_declined');
    assert.deepEqual([page.state.asking, page.state.following, page.waiting], [null, null, []]);
  });

  test('has a session of its own where that is wanted', () => {
    const page = new PageModel().event('connect').opens({ limits: { recording: true } });
    plays(page, { fresh: true });
    assert.equal(page.sent.at(-1).type, 'leave');
    page.says('ltx2_stream_complete', { reason: 'stop_requested' }).closes('ended', 1000);
    assert.equal(page.state.phase, 'connecting');
  });

  test('asks first where a film would be lost', () => {
    const page = new PageModel().event('connect').opens().starts(0, 'a').streams(0).completes(0);
    plays(page, { fresh: true });
    assert.match(askWords(page.state).text, /Download this film first/);
  });

  test('begins at once where the connection is lost', () => {
    const page = PageModel.active().closes('broken', 1006);
    plays(page, { fresh: true });
    assert.equal(page.state.phase, 'connecting');
    assert.equal(page.opening.resume, null);
  });

  test('has its own session after one that has all its segments', () => {
    const page = new PageModel().event('connect').opens({ cap: 1, limits: { recording: true } }).starts(0, 'a').streams(0).completes(0);
    page.says('ltx2_stream_complete', { reason: 'segment_cap' }).closes('ended', 1000);
    plays(page);
    assert.equal(page.state.phase, 'connecting');
    assert.equal(page.opening.resume, null);
  });

  test('that is longer than the session is told, and stays out of the prompt field', () => {
    const page = plays(new PageModel()).opens({ cap: 1 });
    page.starts(0, 'one', { request_id: 'p1' }).streams(0).completes(0);
    page.says('ltx2_stream_complete', { reason: 'segment_cap' }).closes('ended', 1000);
    assert.equal(page.state.notice.text, 'It may have 1 segment. 5 shots of the story were not made.');
    assert.deepEqual(page.ran('return_prompt'), []);
  });

  test('that a language model has written is not written once more', () => {
    const page = plays(new PageModel({ settings: { enhancement: true } }), { source: 'enhanced' }).opens({ features: { enhancement: true } });
    assert.equal(page.sent[0].source, 'enhanced');
    page.starts(0, 'one', { source: 'enhanced' });
    assert.deepEqual(page.waiting, SHOTS.slice(1));
    page.closes('broken', 1006).event('reconnect_due').opens();
    assert.deepEqual(page.waiting, SHOTS);
  });

  test('is taken out of the queue at once', () => {
    const page = plays(new PageModel()).event('requests_cleared');
    assert.deepEqual(page.waiting, []);
  });
});

describe('leaving the page', () => {
  test('is warned of while something is made or waits', () => {
    const page = new PageModel();
    assert.equal(hasUnsaved(page.state), false);
    plays(page);
    assert.equal(hasUnsaved(page.state), true);
    page.opens({ limits: { recording: true } });
    for (const [i, prompt] of SHOTS.entries()) {
      page.starts(i, prompt);
      assert.equal(hasUnsaved(page.state), true);
      page.streams(i).completes(i);
    }
    assert.equal(hasUnsaved(page.state), false);
  });

  test('is warned of while a segment is interrupted, and while only the page has the film', () => {
    const page = PageModel.active().starts(0, 'a').closes('broken', 1006);
    assert.equal(hasUnsaved(page.state), true);
    page.event('reconnect_due').opens().starts(0, 'a').streams(0).completes(0);
    assert.equal(hasUnsaved(page.state), true);
    page.event('downloaded');
    assert.equal(hasUnsaved(page.state), false);
  });
});

describe('time left', () => {
  const left = (page) => timeLeftWords(page.state, page.now);

  test('is known after the warning of an idle session, until something is asked for', () => {
    const page = PageModel.active();
    assert.equal(left(page), null);
    page.says('idle_warning', { seconds_left: 90 });
    assert.deepEqual(left(page), { name: 'Ends in', left: '1:30', spoken: 'Ends in less than 5 min' });
    page.wait(31_000);
    assert.deepEqual(left(page), { name: 'Ends in', left: '0:59', spoken: 'Ends in less than 60 s' });
    page.wait(20_000);
    assert.equal(left(page).spoken, 'Ends in less than 60 s');
    page.submit('a fox');
    assert.equal(left(page), null);
  });

  test('is known of a session that can go on', () => {
    const page = PageModel.active().event('leave');
    page.says('ltx2_stream_complete', { reason: 'stop_requested', resumable_until: new Date(page.now + 65_000).toISOString() });
    assert.deepEqual([left(page).name, left(page).left], ['Can go on for', '1:05']);
    page.wait(65_000);
    assert.equal(left(page), null);
  });

  test('is known of a server that shuts down', () => {
    const page = PageModel.active().says('server_draining', { deadline_seconds: 30 });
    assert.deepEqual([left(page).name, left(page).left], ['Server stops in', '0:30']);
  });
});

describe('the history', () => {
  test('goes on with a session whose token is kept, unless another one is open', () => {
    const token = { session_id: 's9', token: 't9' };
    const page = new PageModel().event('session_continued', { token });
    assert.deepEqual(page.ran('load_film'), [{ type: 'load_film', key: token }]);
    page.event('film_loaded', { sessionId: 's9', film: null });
    assert.deepEqual(page.opening.resume, token);
    const open = PageModel.active().event('session_continued', { token });
    assert.deepEqual(open.ran('load_film'), []);
  });
});

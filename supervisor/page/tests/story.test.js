// Tests of the reducer: stories that are played, and the time that a session has left.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { shotStates } from '../session/story.js';
import { hasUnsaved } from '../state.js';
import { askWords, roomWords, timeLeftWords } from '../words.js';
import { PageModel, TOKEN } from './page_model.js';

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

describe('a story and what else waits', () => {
  test('is counted against the cap of its own session only', () => {
    const page = new PageModel().event('connect').opens({ cap: 6, limits: { recording: true } }).starts(0, 'a').streams(0).completes(0);
    page.event('leave').says('ltx2_stream_complete', { reason: 'stop_requested' }).closes('ended', 1000);
    page.event('connect_fresh').says('queue_status', { position: 0, queue_depth: 1 });
    plays(page);
    assert.deepEqual([page.state.asking, page.waiting], [null, SHOTS]);
  });

  test('the user’s own prompts wait behind a story in a session of its own', () => {
    const page = new PageModel().event('connect').opens({ limits: { recording: true } }).starts(0, 'a').submit('mine').submit('yours');
    plays(page, { fresh: true, prompts: ['one'] });
    page.says('ltx2_stream_complete', { reason: 'stop_requested' }).closes('ended', 1000);
    assert.deepEqual([page.waiting, page.ran('return_prompt')], [['one', 'mine', 'yours'], []]);
    assert.deepEqual(page.state.waiting.map(({ id, message }) => id === message.request_id && !message.sent), [true, true, true]);
  });

  test('stays where the server asks for a key first', () => {
    const page = plays(new PageModel()).submit('mine');
    page.says('error', { code: 'unauthorized', message: 'a key is needed', retryable: false }).closes('rejected', 1003);
    assert.deepEqual([page.state.phase, page.waiting, page.ran('return_prompt')], ['closed', [...SHOTS, 'mine'], []]);
    page.event('connect').opens();
    assert.deepEqual([asked(page).slice(0, 6), page.waiting], [SHOTS, [...SHOTS, 'mine']]);
  });

  test('takes the place of one that waits for a key', () => {
    const page = plays(new PageModel()).submit('mine');
    page.says('error', { code: 'unauthorized', message: 'a key is needed', retryable: false }).closes('rejected', 1003);
    plays(page, { id: 'v2', prompts: ['night'] });
    assert.deepEqual(page.waiting, ['mine', 'night']);
  });

  test('a session that may go on is not forgotten where the server asks for a key first', () => {
    const page = new PageModel({ kept: TOKEN }).event('connect_kept').event('film_loaded', { sessionId: 's1', film: null });
    page.says('error', { code: 'unauthorized', message: 'a key is needed', retryable: false }).closes('broken', 1006);
    assert.deepEqual([page.state.phase, page.state.resume, page.ran('schedule_reconnect')], ['closed', TOKEN, []]);
    page.event('connect');
    assert.deepEqual(page.opening.resume, TOKEN);
  });

  test('a shot that is refused stays out of the prompt field', () => {
    const page = plays(new PageModel(), { prompts: ['one'] }).opens();
    page.says('error', { code: 'prompt_blocked', message: 'blocked', retryable: false, request_id: 'p1' });
    assert.deepEqual([page.waiting, page.ran('return_prompt')], [[], []]);
  });

  test('tells when there is room for another prompt', () => {
    assert.equal(roomWords(8, 8), 'There is room when the next segment begins.');
    assert.equal(roomWords(20, 8), 'There is room once 13 more segments have begun.');
  });
});

describe('the history', () => {
  const token = { session_id: 's9', token: 't9' };
  const continued = (page, isLive = false) => page.event('session_continued', { token, isLive });
  /** A session of a server that may keep films, which has ended. */
  const ended = (recording) => {
    const page = new PageModel().event('connect').opens({ limits: { recording } }).starts(0, 'a').streams(0).completes(0);
    return page.says('ltx2_stream_complete', { reason: 'stop_requested' }).closes('ended', 1000);
  };

  test('leaves nothing of the session before', () => {
    const page = ended(true).event('downloaded');
    assert.deepEqual(page.state.filmKey, TOKEN);
    continued(page);
    const { filmKey, watchToken, downloaded, stream, gpu, segments, receiving } = page.state;
    assert.deepEqual([filmKey, watchToken, downloaded, stream, gpu, segments, receiving], [null, null, 0, null, null, [], null]);
    const told = { segment_idx: 0, start_ms: 0, duration_ms: 1000, bytes: 5, kept: true, thumbnail: false, prompt: 'b', original_prompt: null };
    const film = { mime: 'video/mp4', fps: 24, live: false, resumable: true, segments: [{ ...told, prompt_source: 'user', attempt: 1 }] };
    page.event('film_loaded', { sessionId: 's9', film });
    assert.deepEqual([page.state.filmKey, page.opening.resume.token], [token, 't9']);
  });

  test('asks before a film is lost that only the page has', () => {
    const page = continued(ended(false));
    assert.match(askWords(page.state).text, /Download this film first/);
    assert.equal(page.state.segments.length, 1);
    page.event('new_session_declined');
    assert.equal(page.state.asking, null);
    continued(page).event('new_session_confirmed');
    assert.deepEqual([page.state.sessionId, page.state.segments], ['s9', []]);
  });

  test('asks before a session is taken from another page', () => {
    const page = continued(new PageModel(), true);
    assert.equal(askWords(page.state).yes, 'Go on here');
    assert.deepEqual(page.ran('load_film'), []);
    page.event('new_session_confirmed');
    assert.deepEqual(page.ran('load_film'), [{ type: 'load_film', key: token }]);
  });

  test('goes on with the session that has just ended as a prompt does', () => {
    const page = PageModel.active().starts(0, 'a').streams(0).completes(0).event('leave');
    page.says('ltx2_stream_complete', { reason: 'stop_requested', resumable_until: new Date(page.now + 65_000).toISOString() });
    page.closes('ended', 1000).event('session_continued', { token: TOKEN, isLive: false });
    assert.deepEqual([page.opening.resume, page.state.segments.length, page.ran('load_film')], [TOKEN, 1, []]);
  });

  test('does not take a chosen state along', () => {
    const page = new PageModel().event('attachments_changed', { image: null, state: { kind: 'k', payload: {} } });
    continued(page).event('film_loaded', { sessionId: 's9', film: null });
    assert.deepEqual([page.opening.resume, page.opening.continuation_state, page.ran('clear_attachments').length], [token, null, 1]);
  });

  test('has a film without segments, which has no type', () => {
    const page = continued(new PageModel());
    page.event('film_loaded', { sessionId: 's9', film: { mime: null, fps: 24, live: false, resumable: true, segments: [] } });
    assert.deepEqual([page.opening.resume, page.state.filmKey], [token, null]);
  });

  test('opens a saved state only after a question where a film would be lost', () => {
    const page = ended(false).event('attachments_changed', { image: null, state: { kind: 'k', payload: {} } }).submit('go');
    assert.equal(askWords(page.state).title, 'The saved state opens another session.');
    page.event('new_session_confirmed');
    assert.deepEqual([page.state.phase, page.waiting], ['connecting', ['go']]);
  });

  test('goes on with a session whose token is kept, unless another one is open', () => {
    const page = new PageModel().event('session_continued', { token });
    assert.deepEqual(page.ran('load_film'), [{ type: 'load_film', key: token }]);
    page.event('film_loaded', { sessionId: 's9', film: null });
    assert.deepEqual(page.opening.resume, token);
    const open = PageModel.active().event('session_continued', { token });
    assert.deepEqual(open.ran('load_film'), []);
  });

  test('extends a session that has all its segments', () => {
    const asked = (isAtCap) => {
      const page = new PageModel().event('session_continued', { token: TOKEN, isLive: false, isAtCap });
      return page.event('film_loaded', { sessionId: TOKEN.session_id, film: null }).opening.extend ?? false;
    };
    assert.deepEqual([asked(true), asked(false)], [true, false]);
  });
});

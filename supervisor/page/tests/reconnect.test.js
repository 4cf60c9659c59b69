// Tests of the reducer: lost connections, refusals, take-over, drain and reload.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { reconnectWords, statusWords } from '../words.js';
import { PageModel, TOKEN } from './page_model.js';

const attempts = (page) => page.ran('schedule_reconnect').map(({ attempt }) => attempt);

/** Returns a page whose connection was lost during the second segment. */
function lost({ settings, more = {} } = {}) {
  const page = PageModel.active({ settings }).submit('fox').starts(0, 'fox', more).streams(0).completes(0, 3);
  page.submit('owl').starts(1, 'owl', more).streams(1);
  page.effects = [];
  return page.closes('broken', 1006);
}

describe('a lost connection', () => {
  test('is told, and what is here stays', () => {
    const page = lost();
    assert.equal(statusWords(page.state)[1], 'Reconnecting');
    assert.deepEqual(page.state.segments.map((s) => s.state), ['done', 'interrupted']);
    assert.deepEqual(page.effects, [{ type: 'schedule_reconnect', attempt: 1 }]);
    page.event('reconnect_scheduled', { dueAt: page.now + 2500 });
    assert.equal(reconnectWords(page.state, page.now), 'trying again in 3 s');
    page.event('reconnect_due');
    assert.equal(reconnectWords(page.state, page.now), 'trying again now');
    assert.deepEqual(page.opening.resume, TOKEN);
  });

  test('is tried again with growing attempts until the session goes on', () => {
    const page = lost();
    for (let i = 0; i < 3; i += 1) page.event('reconnect_due').closes('unreachable', 1006);
    assert.deepEqual(attempts(page), [1, 2, 3, 4]);
    page.event('reconnect_due').opens({ next: 1 });
    assert.equal(page.state.reconnect, null);
    page.closes('going_away', 1001);
    assert.deepEqual(attempts(page), [1, 2, 3, 4, 1]);
  });

  test('goes on with the segment that was under way, and then with what waits', () => {
    const page = lost();
    page.submit('night');
    page.event('reconnect_due').opens({ next: 1 });
    assert.deepEqual(page.sent.map((m) => m.prompt), ['owl', 'night']);
    assert.deepEqual(page.ran('reset_player'), []);
    page.starts(1, 'owl');
    assert.deepEqual(page.ran('void_media'), [{ type: 'void_media', idx: 1, from: 3, again: true }]);
    assert.deepEqual(page.waiting, ['night']);
  });

  test('does not make a segment again that the server had finished', () => {
    const page = lost().event('reconnect_due').opens({ next: 2 });
    assert.deepEqual(page.sent, []);
    assert.deepEqual(page.state.segments.map((s) => [s.state, s.duration]), [['done', 3], ['done', 1]]);
    assert.deepEqual(page.effects.map((e) => e.type).slice(-3), ['open_player', 'clear_attachments', 'finish_media']);
  });

  test('leaves a looped prompt to the loop, which goes on where it was', () => {
    const page = lost({ settings: { loop: true, curated: 'fox\nowl\nhare' }, more: { source: 'curated' } }).event('reconnect_due');
    assert.deepEqual(page.opening.curated_prompts, ['owl', 'hare', 'fox']);
    assert.equal(page.opening.loop_generation_enabled, false, 'there are requests that come first');
    page.opens({ next: 1 });
    assert.deepEqual(page.sent.map((m) => m.type), ['segment_prompt_source', 'segment_prompt_source', 'loop_generation_updated']);
  });

  test('begins the loop anew when its prompt is no longer in the list', () => {
    const page = lost({ settings: { loop: true, curated: 'fox\nowl' }, more: { source: 'curated' } });
    page.event('settings_changed', { settings: { ...page.state.settings, curated: 'one\ntwo' } }).event('reconnect_due');
    assert.deepEqual(page.opening.curated_prompts, ['one', 'two']);
  });

  test('waits for a server that is full, and says why', () => {
    const page = lost().event('reconnect_due');
    page.says('error', { code: 'session_rejected', message: 'the server is full', retryable: true }).closes('busy', 1013);
    assert.deepEqual(attempts(page), [1, 2]);
    assert.equal(page.state.reconnect.why, 'The server has no room for it yet.');
    assert.equal(page.state.notice, null);
  });

  test('is as one when a router finds no server that goes on', () => {
    const page = PageModel.active().submit('owl').starts(0, 'owl').streams(0).submit('night');
    page.says('error', { code: 'gpu_unavailable', message: 'no server has a place', retryable: true }).closes('busy', 1013);
    assert.deepEqual([page.state.phase, attempts(page)], ['lost', [1]]);
    page.event('reconnect_due').opens({ next: 0 });
    assert.deepEqual(page.sent.slice(-2).map((m) => m.prompt), ['owl', 'night']);
  });

  test('is over once the server answers, also while the session waits for a GPU', () => {
    const page = lost().event('reconnect_due').says('queue_status', { position: 1, queue_depth: 2 });
    assert.equal(page.state.reconnect.answered, true);
    assert.equal(statusWords(page.state)[1], 'Waiting for a GPU');
    page.closes('broken', 1006);
    assert.deepEqual([page.state.phase, page.state.reconnect.attempt, page.state.reconnect.answered], ['lost', 2, false]);
  });

  test('ends when the user gives up: the session can be had later, prompts go back to their box', () => {
    const page = lost().submit('night').event('give_up');
    assert.equal(page.state.phase, 'closed');
    assert.equal(page.state.reconnect, null);
    assert.equal(page.segment.state, 'failed');
    assert.deepEqual(page.ran('return_prompt').map((e) => e.prompt), ['owl']);
    assert.deepEqual([page.state.notice.title, page.state.notice.fresh], ['The connection is lost.', true]);
    assert.deepEqual(page.state.resume, TOKEN);
    page.event('connect');
    assert.deepEqual(page.opening.resume, TOKEN);
    assert.equal(page.state.reconnect.attempt, 0);
  });

  test('ends for good when the user leaves', () => {
    const page = lost().event('leave');
    assert.deepEqual([page.state.phase, page.state.resume, page.state.notice], ['closed', null, null]);
    assert.equal(page.ran('drop').length, 1);
    page.event('reconnect_due');
    assert.equal(page.state.phase, 'closed');
  });

  test('ends when the server does not know the session', () => {
    const page = lost().event('reconnect_due');
    page.says('error', { code: 'session_rejected', message: 'no such session', retryable: false }).closes('rejected', 1003);
    assert.equal(page.state.phase, 'closed');
    assert.equal(page.state.resume, null);
    assert.deepEqual([page.state.notice.title, page.state.notice.reconnect, page.state.notice.fresh],
      ['The session cannot be continued.', true, false]);
    assert.match(page.state.notice.text, /^The server no longer has it: .* restarted .* Start a new one\.$/);
  });

  test('does not stay lost when the next opening message is too large', () => {
    const page = lost();
    page.event('settings_changed', { settings: { ...page.state.settings, curated: 'a'.repeat(48 * 1024 * 1024) } });
    page.event('reconnect_due');
    assert.equal(page.state.phase, 'closed');
    assert.equal(page.state.reconnect, null);
  });
});

describe('a connection that was never open', () => {
  test('is told when no session is lost with it', () => {
    const page = new PageModel().submit('fox').closes('unreachable', 1006);
    assert.equal(page.state.phase, 'closed');
    assert.equal(page.state.notice.title, 'The server cannot be reached.');
    assert.deepEqual(attempts(page), []);
    assert.deepEqual(page.ran('return_prompt').map((e) => e.prompt), ['fox']);
    assert.equal(page.state.notice.text, 'Check your connection, and try again in a moment.');
    assert.deepEqual(page.state.errors.map((e) => [e.code, e.message]), [[1006, 'The server cannot be reached.']]);
  });
});

describe('a refusal', () => {
  test('says more than the close code that follows', () => {
    const page = new PageModel().event('connect');
    page.says('error', { code: 'session_rejected', message: 'the server is full', retryable: true }).closes('busy', 1013);
    assert.equal(page.state.phase, 'closed');
    assert.equal(page.state.notice.title, 'The server did not take this session.');
    assert.equal(page.state.notice.text, 'Try again in a little while.');
    assert.equal(statusWords(page.state)[1], 'Disconnected');
  });

  test('of a saved state ends the session', () => {
    const page = new PageModel().event('attachments_changed', { image: null, state: { kind: 'x', payload: {} } }).event('connect');
    page.says('error', { code: 'state_incompatible', message: 'width differs', retryable: false }).closes('rejected', 1003);
    assert.equal(page.state.notice.title, 'The saved state does not fit this server.');
  });

  test('without a word is told by its close code', () => {
    for (const [reason, code, title] of [
      ['rule_broken', 1008, 'The connection is too slow for the video.'],
      ['internal', 1011, 'The server had an internal fault.'], ['other', 1002, 'The connection was closed (code 1002).'],
    ]) {
      const page = PageModel.active().closes(reason, code, 'why');
      assert.deepEqual([page.state.notice.title, page.state.notice.text], [title, 'Reconnect to go on where you were.']);
      assert.equal(page.state.notice.fresh, true);
    }
  });
});

describe('a take-over by another connection', () => {
  test('ends the session here without another attempt', () => {
    const page = PageModel.active().starts(0, 'a').streams(0).completes(0);
    page.says('error', { code: 'session_rejected', message: 'goes on elsewhere', retryable: false }).closes('ended', 1000);
    assert.equal(page.state.phase, 'complete');
    assert.equal(statusWords(page.state)[1], 'The session is no longer here');
    assert.equal(page.state.notice.title, 'The session is no longer on this page.');
    assert.equal(page.state.resume, null);
    assert.deepEqual(attempts(page), []);
  });
});

describe('a drain', () => {
  test('is announced with its deadline', () => {
    const page = PageModel.active().says('server_draining', { deadline_seconds: 30 });
    assert.equal(page.state.drainDeadline, page.now + 30_000);
  });

  test('ends the connection and not the session', () => {
    const page = PageModel.active().says('server_draining', { deadline_seconds: 30 });
    page.says('ltx2_stream_complete', { reason: 'stop_requested' });
    assert.equal(page.state.phase, 'active');
    page.closes('going_away', 1001);
    assert.deepEqual([page.state.phase, page.state.drainDeadline], ['lost', null]);
    assert.deepEqual(attempts(page), [1]);
  });
});

describe('a reload of the tab', () => {
  test('offers the session that the tab had', () => {
    const page = new PageModel({ kept: TOKEN });
    page.event('connect_kept').event('film_loaded', { sessionId: 's1', film: null });
    assert.deepEqual(page.opening.resume, TOKEN);
    assert.equal(page.state.kept, null);
    assert.equal(statusWords(page.state)[1], 'Reconnecting');
    page.opens({ next: 4 }).submit('fox').starts(4, 'fox');
    assert.equal(page.segment.idx, 4);
  });

  test('counts the time of a request that was running from the reload on', () => {
    const asked = { id: 'r1', prompt: 'fox', at: 99_000, sent: true, message: { type: 'segment_prompt_source', prompt: 'fox', source: 'user' } };
    const page = new PageModel({ kept: { ...TOKEN, asked } }).event('connect_kept');
    assert.equal(page.state.asked.at, page.now);
  });

  test('forgets the session when the user does not want it', () => {
    const page = new PageModel({ kept: TOKEN }).event('kept_dropped');
    assert.deepEqual(page.effects, [{ type: 'save_token', token: null }]);
    assert.equal(page.state.kept, null);
  });

  test('starts another session when a prompt is sent instead', () => {
    const page = new PageModel({ kept: TOKEN }).submit('fox');
    assert.equal(page.opening.resume, null);
  });
});

test('a session with another state is not the one that could be gone on with', () => {
  const page = lost().event('give_up');
  page.event('attachments_changed', { image: null, state: { kind: 'ltx2.v1', payload: {} } }).event('connect');
  assert.equal(page.opening.resume, null);
  assert.equal(page.ran('save_token').at(-1).token, null);
});

test('a fresh session forgets the one that was lost', () => {
  const page = lost().event('give_up').event('connect_fresh');
  assert.equal(page.opening.resume, null);
});

test('the initial image is sent again until a segment was made from it', () => {
  const image = { mime: 'image/png', name: 'a.png', data: 'AAAA' };
  const page = new PageModel().event('attachments_changed', { image, state: null }).event('connect').opens();
  page.closes('broken', 1006).event('reconnect_due');
  assert.deepEqual(page.opening.initial_image, image);
  page.opens().starts(0, 'a').streams(0).completes(0).closes('broken', 1006).event('reconnect_due');
  assert.equal(page.opening.initial_image, null);
});

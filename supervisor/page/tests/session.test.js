// Tests of the reducer: a session whose connection holds.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import {
  applyWords, closeAdvice, closeWords, curatedWords, drainWords, errorWords, idleWords, queueWords, segmentWords, snapshotWords,
  starvedWords, statusWords,
} from '../words.js';
import { reduce } from '../session.js';
import { canApply, finishedSegments, hasFeature, hasState, initialState, maxWaiting, shownPreview } from '../state.js';
import { PageModel, TOKEN } from './page_model.js';

const status = (page) => statusWords(page.state)[1];

describe('opening', () => {
  test('a prompt opens a session and is sent once that is active', () => {
    const page = new PageModel().submit('a fox');
    assert.equal(page.state.phase, 'connecting');
    assert.deepEqual(page.sent, []);
    assert.deepEqual(page.ran('clear_prompt').length, 1);
    page.opens();
    assert.deepEqual(page.sent.map((m) => [m.type, m.prompt, m.source]), [['segment_prompt_source', 'a fox', 'user']]);
    page.starts(0, 'a fox');
    assert.deepEqual(page.waiting, []);
  });

  test('the opening message carries the settings and the attachments', () => {
    const image = { mime: 'image/png', name: 'a.png', data: 'AAAA' };
    const page = new PageModel({ settings: { enhancement: true, single: true, jpeg: true, curated: ' one \n\n two' } });
    page.event('attachments_changed', { image, state: { kind: 'ltx2.v1', payload: {} } }).event('connect');
    assert.deepEqual(page.opening, {
      type: 'session_init_v2', curated_prompts: ['one', 'two'], initial_image: image, enhancement_enabled: true,
      auto_extension_enabled: false, loop_generation_enabled: false, single_clip_mode: true, stream_mode: 'legacy_jpeg',
      continuation_state: { kind: 'ltx2.v1', payload: {} }, resume: null, heartbeat: true, preview: true,
    });
    page.opens();
    assert.equal(page.ran('clear_attachments').length, 1);
    assert.equal(page.state.chosenState, null);
  });

  test('the loop is held back until prompts that wait were sent', () => {
    const page = new PageModel({ settings: { loop: true, curated: 'one' } }).submit('a fox');
    assert.equal(page.opening.loop_generation_enabled, false);
    page.opens();
    assert.deepEqual(page.sent.map((m) => m.type), ['segment_prompt_source', 'loop_generation_updated']);
  });

  test('a session that opens paused tells the server so before any prompt', () => {
    const page = new PageModel({ settings: { pause: true } }).submit('a fox').opens();
    assert.deepEqual(page.sent.map((m) => m.type), ['generation_paused_updated', 'segment_prompt_source']);
  });

  test('an opening message that is too large is not sent, and the prompt goes back to its box', () => {
    const page = new PageModel();
    page.event('attachments_changed', { image: { mime: 'image/png', name: 'a', data: 'A'.repeat(48 * 1024 * 1024) }, state: null });
    page.submit('a fox');
    assert.deepEqual(page.ran('connect'), []);
    assert.equal(page.state.phase, 'idle');
    assert.equal(page.state.notice.title, 'The opening message is too large.');
    // The other order would leave the field empty.
    assert.deepEqual(page.effects.map((e) => e.type), ['clear_prompt', 'return_prompt']);
  });

  test('a session is opened once', () => {
    const page = new PageModel().event('connect').event('connect');
    assert.equal(page.ran('connect').length, 1);
  });

  test('a new session begins with an empty reel', () => {
    const page = PageModel.active().starts(0, 'a').streams(0).completes(0).event('leave');
    page.says('ltx2_stream_complete', { reason: 'stop_requested' }).closes('ended', 1000);
    assert.equal(page.state.segments.length, 1);
    page.event('connect');
    assert.equal(page.state.segments.length, 1);
    page.effects = [];
    page.opens({ id: 's2' });
    assert.deepEqual(page.state.segments, []);
    assert.deepEqual(page.ran('reset_player'), [{ type: 'reset_player', mode: 'av_fmp4' }]);
  });
});

describe('queue and GPU', () => {
  test('the position in the queue is told as it changes', () => {
    const page = new PageModel().event('connect');
    const told = [];
    for (const [position, queue_depth] of [[12, 13], [2, 5], [0, 1]]) {
      page.says('queue_status', { position, queue_depth });
      told.push(queueWords(page.state.queue));
    }
    assert.deepEqual(told, [
      { place: '13th', text: '12 ahead of you, 13 waiting' },
      { place: '3rd', text: '2 ahead of you, 5 waiting' },
      { place: '1st', text: 'You are next, 1 waiting' },
    ]);
    assert.equal(status(page), 'Waiting for a GPU');
  });

  test('a GPU is named before the session is active', () => {
    const page = new PageModel().event('connect').says('gpu_assigned', { gpu_id: 3, session_id: 's1', resume_token: 't1' });
    assert.equal(status(page), 'GPU 3 assigned');
    assert.deepEqual(page.ran('save_token').at(-1).token, TOKEN);
  });

  test('a GPU is named with its server where that has a name', () => {
    const page = new PageModel().event('connect').says('gpu_assigned', { gpu_id: 3, session_id: 's1', resume_token: 't1', server: 'b' });
    assert.equal(status(page), 'GPU 3 of b assigned');
  });

  test('a session that moves to another GPU stays active and keeps its segments', () => {
    const page = PageModel.active().starts(0, 'a').streams(0).completes(0);
    page.says('gpu_assigned', { gpu_id: 1, session_id: 's1', resume_token: 't1', worker_id: 'v' });
    assert.equal(page.state.phase, 'active');
    assert.equal(page.state.gpu.gpu_id, 1);
    assert.equal(page.state.segments.length, 1);
    assert.deepEqual(page.ran('reset_player'), []);
  });

  test('a move that is refused is told, and can be asked for again', () => {
    const page = PageModel.active().event('move');
    assert.deepEqual(page.ran('move'), [{ type: 'move', sessionId: 's1' }]);
    assert.equal(page.state.moving, true);
    page.event('moved', { error: 'no other GPU is free' });
    assert.equal(page.state.moving, false);
    assert.equal(page.state.notice.text, 'No other GPU is free.');
  });

  test('the idle limit counts from when the session became active, however long it waited for a GPU', () => {
    const page = new PageModel().event('connect').wait(3_600_000).opens();
    assert.equal(idleWords(page.state, page.now), '60 s');
    page.wait(20_000);
    assert.equal(idleWords(page.state, page.now), 'ends in 0:40');
    page.event('snapshot').wait(10_000);
    assert.equal(idleWords(page.state, page.now), 'ends in 0:50');
    page.starts(0, 'a').wait(30_000);
    assert.equal(idleWords(page.state, page.now), '60 s');
  });
});

describe('previews', () => {
  const preview = (page, idx, frame, fields = {}) => page.says('ltx2_preview', {
    segment_idx: idx, attempt: 1, frame, num_frames: 24, width: 64, height: 48, jpeg: `AAA${frame}`, ...fields,
  });
  const shown = (page) => shownPreview(page.state)?.src ?? null;

  test('the newest preview is shown until the first media', () => {
    const page = PageModel.active().starts(0, 'a fox');
    assert.equal(shown(page), null);
    preview(page, 0, 1);
    assert.equal(shown(page), 'data:image/jpeg;base64,AAA1');
    preview(page, 0, 2);
    assert.equal(shown(page), 'data:image/jpeg;base64,AAA2');
    assert.deepEqual(page.state.preview, { idx: 0, frame: 2, frames: 24, src: 'data:image/jpeg;base64,AAA2' });
    page.streams(0);
    assert.equal(shown(page), null);
    assert.equal(page.state.preview, null);
    // One that comes late is of no use.
    preview(page, 0, 3);
    assert.equal(page.state.preview, null);
  });

  test('previews of a segment end with it', () => {
    const page = PageModel.active().starts(0, 'a fox');
    preview(page, 0, 1).says('segment_cancelled', { segment_idx: 0 });
    assert.equal(page.state.preview, null);
    page.starts(0, 'a fox');
    assert.equal(shown(page), null);
    preview(page, 1, 1); // of a segment that has not begun
    assert.equal(shown(page), null);
    preview(page, 0, 1);
    page.closes('lost', 1006);
    assert.equal(shown(page), null);
  });

  test('another attempt begins without the pictures of the one before', () => {
    const page = PageModel.active().starts(0, 'a fox');
    preview(page, 0, 1).starts(0, 'a fox', { attempt: 2 });
    assert.equal(shown(page), null);
    preview(page, 0, 2, { attempt: 2 });
    assert.equal(shown(page), 'data:image/jpeg;base64,AAA2');
  });

  test('the next segment is shown while the one before plays', () => {
    const page = PageModel.active().starts(0, 'a').streams(0).completes(0).starts(1, 'b');
    preview(page, 1, 23);
    assert.equal(shown(page), 'data:image/jpeg;base64,AAA23');
  });
});

describe('segments', () => {
  test('a segment is denoised, streams and is done', () => {
    const page = PageModel.active().submit('a fox').wait(100).starts(0, 'a fox');
    assert.equal(segmentWords(page.segment), 'denoising 0 of 4');
    page.says('step_complete', { segment_idx: 0, step: 2, total_steps: 4, stage: 'refine' });
    assert.equal(segmentWords(page.segment), 'refining 2 of 4');
    assert.equal(status(page), 'Segment 1 is being generated');
    page.streams(0);
    assert.equal(status(page), 'Segment 1 is streaming');
    assert.deepEqual(page.ran('add_media').map((e) => [e.bytes.length, e.picture]), [[10, false], [20, true]]);
    page.wait(50).event('first_picture', { idx: 0, start: 0.02 });
    assert.equal(page.segment.firstPictureMs, 150);
    assert.equal(page.segment.start, 0.02);
    page.completes(0, 3);
    const { state, duration, start, generationMs, latencyMs } = page.segment;
    assert.deepEqual({ state, duration, start, generationMs, latencyMs }, { state: 'done', duration: 3, start: 0, generationMs: 500, latencyMs: 700 });
    assert.deepEqual(page.ran('finish_media'), [{ type: 'finish_media', idx: 0 }]);
    assert.equal(status(page), 'Ready for a prompt');
  });

  test('a segment begins where the one before ends', () => {
    const page = PageModel.active().starts(0, 'a').streams(0).completes(0, 3).starts(1, 'b');
    assert.equal(page.segment.start, 3);
  });

  test('the first message of a JPEG session is a picture', () => {
    const page = new PageModel({ settings: { jpeg: true } }).event('connect').opens().starts(0, 'a').media(5, 6);
    assert.deepEqual(page.ran('reset_player').at(-1).mode, 'legacy_jpeg');
    assert.deepEqual(page.ran('add_media').map((e) => e.picture), [true, false]);
  });

  test('media after the first picture do not change the state', () => {
    const page = PageModel.active().starts(0, 'a').streams(0).media(30);
    const { state } = page;
    page.media(30, 30);
    assert.equal(page.state.segments, state.segments);
  });

  test('a segment that its worker did not survive is made again, and its media are void', () => {
    const page = PageModel.active().submit('a').starts(0, 'a').streams(0).completes(0, 3).submit('b').starts(1, 'b').streams(1);
    page.effects = [];
    page.says('error', { code: 'worker_failed', message: 'worker died', retryable: true, segment_idx: 1, restarting: true });
    assert.equal(page.segment.state, 'restarting');
    assert.equal(status(page), 'Segment 2 starts again');
    assert.equal(page.state.notice.title, 'The segment is being made again.');
    page.starts(1, 'b', { attempt: 2 });
    assert.deepEqual(page.ran('void_media'), [{ type: 'void_media', idx: 1, from: 3, again: true }]);
    assert.equal(segmentWords(page.segment), 'denoising 0 of 4, attempt 2');
    page.streams(1).completes(1, 3);
    assert.equal(page.state.notice, null);
    assert.deepEqual(page.state.errors.map((e) => e.code), ['worker_failed']);
  });

  test('a notice that came in between outlives the segment', () => {
    const page = PageModel.active().starts(0, 'a');
    page.says('error', { code: 'worker_failed', message: 'died', retryable: true, segment_idx: 0, restarting: true });
    page.event('reported', { title: 'Another one.', text: '' }).starts(0, 'a', { attempt: 2 }).streams(0).completes(0);
    assert.equal(page.state.notice.title, 'Another one.');
  });

  test('what was said about a segment that failed goes when the user has asked again', () => {
    const page = PageModel.active().submit('a').starts(0, 'a');
    page.wait(10).says('error', { code: 'worker_failed', message: 'out of memory', retryable: true, segment_idx: 0 });
    assert.equal(page.state.notice.text, 'Send the prompt again.');
    page.wait(10).submit('a');
    assert.equal(page.state.notice.text, 'Send the prompt again.');
    page.starts(0, 'a');
    assert.equal(page.state.notice, null);
  });

  test('what was said about a refused request can be read while those run that waited before', () => {
    const page = PageModel.active().submit('a').starts(0, 'a').submit('b').wait(10).submit('c');
    const message = '`num_inference_steps` must be from 1 to 50, got 900';
    page.says('error', { code: 'invalid_message', message, retryable: false, request_id: 'p3' });
    page.streams(0).completes(0).starts(1, 'b');
    assert.equal(page.state.notice.title, 'That number of steps is not possible.');
    page.streams(1).completes(1);
    assert.equal(page.state.notice, null);
  });

  test('an error that concerns no request stays', () => {
    const page = PageModel.active().says('error', { code: 'internal_error', message: 'no', retryable: true });
    page.wait(10).submit('a').starts(0, 'a').streams(0).completes(0);
    assert.equal(page.state.notice.title, 'The server had an internal fault.');
    assert.equal(page.event('notice_closed').state.notice, null);
  });

  test('a segment that failed gives its index to the next one', () => {
    const page = PageModel.active().starts(0, 'a').streams(0);
    page.says('error', { code: 'worker_failed', message: 'out of memory', retryable: true, segment_idx: 0 });
    assert.equal(page.segment.state, 'failed');
    assert.equal(page.state.phase, 'active');
    page.starts(0, 'b');
    assert.deepEqual(page.ran('void_media'), [{ type: 'void_media', idx: 0, from: 0, again: false }]);
    assert.deepEqual(page.state.segments.map((s) => s.prompt), ['b']);
  });

  test('a cancelled segment loses its media, and the next one takes its place', () => {
    const page = PageModel.active().starts(0, 'a').streams(0).event('cancel');
    assert.deepEqual(page.sent.at(-1), { type: 'cancel_segment' });
    page.says('segment_cancelled', { segment_idx: 0 });
    assert.equal(page.segment.state, 'cancelled');
    assert.equal(page.segment.duration, 0);
    assert.equal(page.ran('void_media').length, 1);
    page.starts(0, 'b');
    assert.equal(page.segment.state, 'denoising');
  });

  test('the clock of a request runs from when the GPU was free for it', () => {
    const page = PageModel.active().submit('a').submit('b').wait(1000).starts(0, 'a');
    assert.equal(page.segment.requestedAt, 1000);
    page.wait(1000).streams(0).completes(0).starts(1, 'b');
    assert.equal(page.segment.requestedAt, 3000);
  });
});

describe('prompts', () => {
  const features = { enhancement: true, rewrite: true };

  test('at most eight wait', () => {
    const page = PageModel.active();
    for (let i = 0; i < 8; i += 1) page.submit(`p${i}`);
    page.effects = [];
    page.submit('too many');
    assert.equal(page.waiting.length, 8);
    assert.deepEqual(page.effects, []); // and the field keeps its text
    assert.equal(page.state.notice.title, 'There are already 8 prompts waiting.');
    page.starts(0, 'p0');
    assert.equal(page.state.notice, null, 'there is room again');
    page.submit('now');
    assert.equal(page.waiting.at(-1), 'now');
  });

  test('as many wait as the server says', () => {
    const page = new PageModel().event('connect').opens({ limits: { max_waiting_requests: 2 } });
    page.submit('a').submit('b').submit('c');
    assert.deepEqual(page.waiting, ['a', 'b']);
    assert.equal(page.state.notice.title, 'There are already 2 prompts waiting.');
    assert.equal(maxWaiting(initialState()), 8);
  });

  test('an enhanced prompt is shown with what it was', () => {
    const page = PageModel.active({ features, settings: { enhancement: true } }).submit('fox');
    assert.equal(status(page), 'A language model writes the prompt');
    page.says('prompt_enhanced', { original_prompt: 'fox', prompt: 'a red fox' });
    assert.equal(page.state.waiting[0].written, 'a red fox');
    assert.equal(status(page), 'Asking for the next segment');
    page.starts(0, 'a red fox', { original_prompt: 'fox', source: 'enhanced' });
    assert.deepEqual([page.segment.prompt, page.segment.original], ['a red fox', 'fox']);
    assert.deepEqual(page.waiting, []);
  });

  test('a prompt that no model has written out runs as it was', () => {
    const page = PageModel.active({ features, settings: { enhancement: true } }).submit('fox');
    page.says('prompt_fallback', { original_prompt: 'fox', reason: 'nobody answered' });
    assert.deepEqual([page.state.notice.title, page.state.notice.text], ['A prompt is used as it was.', 'Nobody answered.']);
    assert.equal(page.state.waiting[0].written, 'fox');
    page.wait(10).submit('owl').starts(0, 'fox').streams(0).completes(0).starts(1, 'owl');
    assert.equal(page.state.notice, null);
  });

  test('a blocked prompt goes back to its box', () => {
    const page = PageModel.active().submit('good').submit('bad');
    page.says('error', { code: 'prompt_blocked', message: 'no', retryable: false });
    assert.deepEqual(page.ran('return_prompt'), [{ type: 'return_prompt', prompt: 'bad' }]);
    assert.deepEqual(page.waiting, ['good']);
    assert.equal(page.state.notice.title, 'This prompt was blocked by the safety filter.');
  });

  test('an error long after a request does not mean it', () => {
    const page = PageModel.active().submit('good').wait(6000);
    page.says('error', { code: 'prompt_blocked', message: 'no', retryable: false });
    assert.deepEqual(page.waiting, ['good']);
  });

  test('an error means the request that it names', () => {
    const page = PageModel.active().submit('bad').submit('good').wait(60_000);
    page.says('error', { code: 'prompt_blocked', message: 'no', retryable: false, request_id: 'p1' });
    assert.deepEqual(page.waiting, ['good']);
    assert.deepEqual(page.ran('return_prompt'), [{ type: 'return_prompt', prompt: 'bad' }]);
    page.says('error', { code: 'invalid_message', message: 'no', retryable: false, request_id: 'gone' });
    assert.deepEqual(page.waiting, ['good']);
  });

  test('a segment takes the request that the server names', () => {
    const page = PageModel.active().submit('fox').submit('fox').starts(0, 'a red fox', { request_id: 'p2', original_prompt: 'fox' });
    assert.deepEqual(page.state.waiting.map((request) => request.id), ['p1']);
  });

  test('a prompt that waits is removed once the server has let go of it', () => {
    const page = PageModel.active().submit('one').submit('two').event('request_withdraw', { id: 'p1' });
    assert.deepEqual(page.sent.at(-1), { type: 'withdraw_request', request_id: 'p1' });
    assert.deepEqual(page.waiting, ['one', 'two']);
    page.says('request_withdrawn', { request_id: 'p1' });
    assert.deepEqual(page.waiting, ['two']);
    assert.deepEqual(page.ran('return_prompt'), []);
  });

  test('a prompt that waits is changed once the server has taken the change', () => {
    const page = PageModel.active().submit('one').event('request_edit', { id: 'p1', prompt: 'uno' });
    assert.deepEqual(page.sent.at(-1), { type: 'edit_request', request_id: 'p1', prompt: 'uno' });
    assert.deepEqual(page.waiting, ['one']);
    page.says('request_edited', { request_id: 'p1', position: 0 });
    assert.deepEqual(page.waiting, ['uno']);
    assert.equal(page.state.waiting[0].message.prompt, 'uno');
  });

  test('a change that is refused leaves the prompt as it was', () => {
    const page = PageModel.active().submit('one').event('request_edit', { id: 'p1', prompt: 'x'.repeat(5000) });
    page.says('error', { code: 'invalid_message', message: 'too long', retryable: false, request_id: 'p1' });
    assert.deepEqual(page.waiting, ['one']);
    assert.equal(page.state.waiting[0].edit, null);
  });

  test('prompts that wait change places', () => {
    const page = PageModel.active().submit('one').submit('two').event('request_move', { id: 'p2', by: -1 });
    assert.deepEqual(page.sent.at(-1), { type: 'edit_request', request_id: 'p2', position: 0 });
    page.says('request_edited', { request_id: 'p2', position: 0 });
    assert.deepEqual(page.waiting, ['two', 'one']);
    const sent = page.sent.length;
    page.event('request_move', { id: 'p2', by: -1 });
    assert.equal(page.sent.length, sent, 'it is the first already');
  });

  test('prompts that were not sent yet change without the server', () => {
    const page = new PageModel().submit('one').submit('two').event('request_move', { id: 'p2', by: -1 });
    page.event('request_edit', { id: 'p1', prompt: 'uno' }).event('request_withdraw', { id: 'p2' });
    assert.deepEqual([page.waiting, page.sent], [['uno'], []]);
    page.opens();
    assert.deepEqual(page.sent.map((m) => [m.prompt, m.request_id]), [['uno', 'p1']]);
  });

  test('an idle session warns before it ends', () => {
    const page = PageModel.active().says('idle_warning', { seconds_left: 15 });
    assert.equal(page.state.notice.title, 'Nothing happens in this session.');
    assert.match(page.state.notice.text, /15/);
  });

  test('a segment that the session made by itself leaves the requests alone', () => {
    const page = PageModel.active({ settings: { curated: 'one' } }).submit('mine').starts(0, 'one', { source: 'curated' });
    assert.deepEqual(page.waiting, ['mine']);
  });

  test('variants are added to the curated prompts and hold when applied', () => {
    const page = PageModel.active({ features, settings: { curated: 'fox' } }).event('rewrite', { prompt: '' });
    assert.deepEqual(page.sent.at(-1), { type: 'rewrite_seed_prompts', seed_prompt: 'fox', count: 3 });
    page.says('seed_prompts_rewritten', { alternatives: ['hare', 'wolf'] });
    assert.deepEqual(page.ran('write_curated'), [{ type: 'write_curated', text: 'fox\nhare\nwolf' }]);
    assert.equal(page.state.curatedNote, '2 variants added. Apply to use them.');
    page.event('curated_applied');
    assert.deepEqual(page.sent.at(-1), { type: 'seed_prompts_updated', seed_prompts: ['fox', 'hare', 'wolf'] });
    assert.equal(page.state.appliedCurated, page.state.settings.curated);
  });

  test('variants of nothing are not asked for', () => {
    const page = PageModel.active({ features }).event('rewrite', { prompt: '' });
    assert.deepEqual(page.sent, []);
    assert.equal(page.state.curatedNote, 'Write a prompt first.');
  });

  test('each switch tells the server', () => {
    const page = PageModel.active();
    for (const name of ['enhancement', 'auto', 'loop', 'pause']) page.event('switched', { name, on: true });
    assert.deepEqual(page.sent, [
      { type: 'enhancement_updated', enabled: true }, { type: 'auto_extension_updated', enabled: true },
      { type: 'loop_generation_updated', enabled: true }, { type: 'generation_paused_updated', paused: true },
    ]);
    assert.equal(status(page), 'Paused');
  });
});

describe('end', () => {
  test('leaving ends the session for good', () => {
    const page = PageModel.active().starts(0, 'a').event('leave');
    assert.deepEqual(page.sent.at(-1), { type: 'leave' });
    assert.equal(page.ran('save_token').at(-1).token, null);
    page.says('ltx2_stream_complete', { reason: 'stop_requested' }).closes('ended', 1000);
    assert.equal(page.state.phase, 'complete');
    assert.equal(page.segment.state, 'cancelled');
    assert.equal(page.state.notice, null);
    assert.equal(status(page), 'Session ended');
  });

  test('leaving the queue closes the connection, and the prompt goes back to its box', () => {
    const page = new PageModel().submit('a').says('queue_status', { position: 3, queue_depth: 4 }).event('leave');
    assert.equal(page.ran('close').length, 1);
    page.closes('ended', 1000);
    assert.equal(page.state.phase, 'closed');
    assert.deepEqual(page.ran('return_prompt'), [{ type: 'return_prompt', prompt: 'a' }]);
    assert.equal(status(page), 'Session ended');
  });

  test('the segment cap completes the session', () => {
    const page = PageModel.active().starts(0, 'a').streams(0).completes(0).says('ltx2_stream_complete', { reason: 'segment_cap' });
    assert.equal(status(page), 'Finished: the session has all its segments');
    page.closes('ended', 1000);
    assert.equal(page.state.phase, 'complete');
    assert.equal(page.state.resume, null);
  });

  test('an idle session ends with a notice, and the next prompt goes on with it', () => {
    const page = PageModel.active().starts(0, 'a').streams(0).completes(0).says('session_timeout', { timeout_seconds: 60 }).closes('ended', 1000);
    assert.equal(page.state.phase, 'complete');
    assert.equal(page.state.notice.text, 'Nothing happened in it for 60 s. Send a prompt to go on with it.');
    assert.deepEqual(page.ran('schedule_reconnect'), []);
    page.submit('b');
    assert.deepEqual(page.opening.resume, TOKEN);
    page.opens({ next: 1 });
    assert.equal(page.sent.at(-1).prompt, 'b');
    assert.deepEqual(page.state.segments.map((s) => s.prompt), ['a']);
    assert.equal(page.ran('reset_player').length, 0);
  });

  test('a prompt for an idle session that the server no longer has is given back', () => {
    const page = PageModel.active().says('session_timeout', { timeout_seconds: 60 }).closes('ended', 1000).submit('b');
    page.says('error', { code: 'session_rejected', message: 'it may have expired', retryable: false }).closes('rejected', 1003);
    assert.equal(page.state.notice.title, 'The session cannot be continued.');
    assert.deepEqual(page.ran('return_prompt'), [{ type: 'return_prompt', prompt: 'b' }]);
    assert.equal(page.submit('b').opening.resume, null);
  });

  test('the state can be saved while the session is open and has a finished segment', () => {
    const page = PageModel.active().starts(0, 'a').streams(0);
    assert.deepEqual([hasState(page.state), snapshotWords(page.state)], [false, 'There is no state until the first segment is finished.']);
    assert.doesNotMatch(drainWords(9, hasState(page.state)), /Save/);
    page.completes(0).starts(1, 'b');
    assert.deepEqual([hasState(page.state), snapshotWords(page.state)], [true, '']);
    assert.match(drainWords(9, hasState(page.state)), /Save the state/);
    page.event('leave').says('ltx2_stream_complete', { reason: 'stop_requested' });
    assert.deepEqual([hasState(page.state), snapshotWords(page.state)], [false, 'The state can be saved while the session is open.']);
    assert.equal(hasState(new PageModel().event('connect').opens({ next: 2 }).state), true, 'it was resumed');
  });

  test('a snapshot is saved under the name of its session and segment', () => {
    const page = PageModel.active().event('snapshot');
    assert.deepEqual(page.sent, [{ type: 'snapshot_state' }]);
    const state = { kind: 'ltx2.v1', payload: { segment_index: 4 } };
    page.says('continuation_state_snapshot', { state });
    assert.deepEqual(page.ran('save_state'), [{ type: 'save_state', state, name: 'fastvideo-s1-state-5.json' }]);
  });
});

describe('what the server can do', () => {
  const works = ({ state }) => ['enhancement', 'auto_extension'].map((feature) => hasFeature(state, feature));

  test('is taken to be everything until it is told', () => {
    const page = new PageModel();
    assert.deepEqual(works(page), [true, true]);
    assert.deepEqual(works(page.event('enhancer_told', { hasEnhancer: false })), [false, false]);
    const { state } = page;
    assert.equal(page.event('enhancer_told', { hasEnhancer: false }).state, state, 'it is told every second');
    assert.deepEqual(works(page.event('enhancer_told', { hasEnhancer: true })), [true, true]);
  });

  test('is what the session says once there is one', () => {
    const page = new PageModel().event('enhancer_told', { hasEnhancer: false }).event('connect');
    assert.deepEqual(works(page.opens({ features: { enhancement: true, auto_extension: false } })), [true, false]);
  });
});

test('curated prompts are applied in a session, and only if they have changed', () => {
  const page = new PageModel({ settings: { curated: 'one' } });
  const told = () => [canApply(page.state), applyWords(page.state), curatedWords(page.state)];
  const before = 'The list is sent when the session opens. Apply sends later changes.';
  assert.deepEqual(told(), [false, before, before]);
  page.event('connect').opens();
  assert.deepEqual(told(), [false, 'The session has this list.', '']);
  page.event('settings_changed', { settings: { ...page.state.settings, curated: 'two' } });
  assert.deepEqual(told(), [true, '', '']);
  page.event('curated_applied');
  assert.deepEqual(told(), [false, 'The session has this list.', 'Holds from the next segment on.']);
  page.event('settings_changed', { settings: { ...page.state.settings, curated: '' } }).event('leave').closes('ended', 1000);
  assert.deepEqual(told(), [false, before, '']);
});

describe('messages that should not come', () => {
  test('types that are not known are ignored', () => {
    const page = PageModel.active();
    const { state } = page;
    for (const type of ['from_the_future', 'constructor', '__proto__']) page.says(type, { segment_idx: 0 });
    page.event('from_the_future');
    assert.equal(page.state, state);
  });

  test('messages of a segment that there is not are ignored', () => {
    const page = PageModel.active();
    page.says('step_complete', { segment_idx: 0, step: 1, total_steps: 4 }).streams(0).completes(0);
    page.says('segment_cancelled', { segment_idx: 0 }).event('first_picture', { idx: 0, start: 0 });
    assert.deepEqual(page.state.segments, []);
    assert.deepEqual(page.effects, []);
  });

  test('an error code that is not known is told by its name', () => {
    const page = PageModel.active().says('error', { code: 'out_of_luck', message: 'sorry', retryable: false });
    assert.deepEqual([page.state.notice.title, page.state.notice.text], ['out of luck.', 'Sorry.']);
    page.says('error', { code: 'constructor', message: '', retryable: false });
    assert.equal(page.state.notice.title, 'constructor.');
  });

  test('only the latest hundred errors are kept', () => {
    const page = PageModel.active();
    for (let i = 0; i < 150; i += 1) page.says('error', { code: 'internal_error', message: `${i}`, retryable: true });
    assert.equal(page.state.errors.length, 100);
    assert.equal(page.state.errors.at(-1).message, '149');
  });

});

describe('words for the person', () => {
  test('say what to do, and nothing of fields and types', () => {
    const image = 'The first image was not accepted.';
    for (const [message, title, text] of [
      ['`initial_image.data`: expected at most 64000000 pixels, got 8001x8000', image,
        'It has 8001×8000 pixels, which is too large. Choose a smaller picture.'],
      ['`initial_image.data`: expected a whole image/png, got a damaged one (unexpected end of file)', image,
        'The file is damaged. Choose another picture.'],
      ['`initial_image.data`: expected a picture at most 16 times as long as wide, got 1x4000', image,
        'It is too long and thin. Crop it, or choose another picture.'],
      ['`initial_image.data`: expected at most 192 MiB to decode, got 214 MiB (interlaced, 7000x8000)', image,
        'It takes too much to read. Choose a smaller picture, or save it as a plain JPEG.'],
      ['`initial_image.data`: expected a PNG, JPEG or WebP file, got image/gif', image, 'Choose a PNG, JPEG or WebP picture.'],
      ['`prompt` has 5000 characters, at most 4000 are allowed', 'The prompt is too long.',
        'It has 5000 characters, and at most 4000 are allowed. Shorten it and send it again.'],
      ['`num_inference_steps` must be from 1 to 200, got 300', 'That number of steps is not possible.',
        'Choose from 1 to 200 steps in the sampling options.'],
    ]) assert.deepEqual(errorWords({ code: 'invalid_message', message }), { title, text });
  });

  test('are there for every code and every close', () => {
    const codes = ['session_rejected', 'gpu_unavailable', 'worker_failed', 'upstream_timeout', 'internal_error', 'prompt_blocked',
      'state_incompatible', 'segment_timeout', 'unauthorized'];
    const texts = codes.map((code) => errorWords({ code, message: 'there is no session 0f3a… with this token' }).text);
    for (const text of texts) assert.match(text, /^[A-Z][^`…]*\.$/);
    const reasons = ['unreachable', 'going_away', 'rejected', 'no_status', 'broken', 'rule_broken', 'too_large', 'internal', 'busy', 'other'];
    for (const reason of reasons) assert.match(`${closeWords(reason, 1)} ${closeAdvice(reason)}`, /^[A-Z][^`]*\. [A-Z][^.]*\.$/);
  });
});

test('the segments of a resumed session count from its beginning', () => {
  const page = new PageModel({ kept: TOKEN }).event('connect_kept').event('film_loaded', { sessionId: 's1', film: null }).opens({ next: 3, cap: 100 });
  assert.equal(finishedSegments(page.state), 3);
  page.starts(3, 'a').streams(3);
  assert.equal(finishedSegments(page.state), 3);
  page.completes(3);
  assert.equal(finishedSegments(page.state), 4);
});

test('video that comes more slowly than it plays is told', () => {
  const page = PageModel.active().starts(0, 'a').streams(0).event('starved', { on: true });
  assert.equal(status(page), 'Segment 1 comes slowly');
  assert.match(starvedWords(page.state), /^Waiting for more of this segment/);
  page.event('starved', { on: false });
  assert.equal(status(page), 'Segment 1 is streaming');
});

test('a viewer who has seen everything is told what comes', () => {
  const page = PageModel.active();
  const told = [starvedWords(page.state)];
  told.push(starvedWords(page.submit('a').state));
  told.push(starvedWords(page.starts(0, 'a').state));
  told.push(starvedWords(page.closes('broken', 1006).state));
  told.push(starvedWords(PageModel.active({ settings: { pause: true } }).state));
  assert.deepEqual(told, [
    'Send a prompt to go on from here', 'Waiting for the next segment', 'Waiting for the next segment: denoising 0 of 4',
    'Waiting for the connection', 'Generation is paused',
  ]);
});

test('the server is told what the viewer sees when that is news, and the session is no less idle for it', () => {
  const page = PageModel.active();
  const view = (position, playing) => page.event('viewed', { position, playing }).sent.filter((m) => m.type === 'playback').length;
  assert.equal(view(0, false), 0, 'there is nothing to see yet');
  page.starts(0, 'a').streams(0);
  const { activeAt } = page.wait(500).state;
  assert.deepEqual([view(1.25, true), view(1.25, true), view(2.25, true), view(2.25, false), view(2.25, false)], [1, 1, 2, 3, 3]);
  assert.deepEqual(page.sent.at(-1), { type: 'playback', position_ms: 2250, playing: false });
  assert.equal(page.state.activeAt, activeAt);
  page.closes('broken', 1006).opens({ next: 0 });
  assert.equal(view(2.25, false), 4, 'over the new connection');
  const jpeg = PageModel.active({ settings: { jpeg: true } }).starts(0, 'a').streams(0);
  assert.deepEqual(jpeg.event('viewed', { position: 1, playing: true }).sent.filter((m) => m.type === 'playback'), []);
});

test('every field of the state is there from the beginning', () => {
  const keys = Object.keys(initialState()).sort();
  const page = PageModel.active().submit('a').starts(0, 'a').streams(0).completes(0).closes('broken', 1006).event('give_up');
  assert.deepEqual(Object.keys(page.state).sort(), keys);
  assert.equal(reduce(page.state, { type: 'notice_closed' }, 0).state.notice, null);
});

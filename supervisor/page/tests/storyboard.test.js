// Tests of the storyboard: its versions, and what the server or the page writes.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { loadBoard, saveBoard } from '../stories/board_memory.js';
import { SHOTS, readRollout, rollOut, withoutModel } from '../stories/rollout.js';
import { STORIES } from '../stories/stories.js';
import { EMPTY, MAX_SHOTS, MAX_VERSIONS, reduceBoard, shownVersion } from '../stories/storyboard.js';
import { askingWords, shotWords, versionWords } from '../stories/story_words.js';

/** A storyboard that records its effects. */
class Board {
  constructor() {
    this.state = EMPTY;
    this.effects = [];
  }

  event(type, fields = {}) {
    const { state, effects } = reduceBoard(Object.freeze(this.state), { type, ...fields });
    this.state = state;
    this.effects.push(...effects);
    return this;
  }

  wants(prompt) { return this.event('rollout_wanted', { prompt }); }
  edits(prompt) { return this.event('edit_wanted', { prompt }); }
  gets(prompts, fields = {}) {
    return this.event('rollout_came', { rollout: { prompts, label: null, model: 'm', fallback_used: false, reason: null, ...fields } });
  }

  get version() { return shownVersion(this.state); }
  get titles() { return this.state.versions.map(({ title }) => title); }
}

describe('stories', () => {
  test('have six different shots each, and names of their own', () => {
    assert.ok(STORIES.length >= 4);
    assert.equal(new Set(STORIES.map(({ title }) => title)).size, STORIES.length);
    for (const { prompts } of STORIES) {
      assert.equal(new Set(prompts).size, SHOTS);
      for (const prompt of prompts) assert.ok(prompt.length > 60 && prompt.length < 400 && !prompt.includes('undefined'), prompt);
    }
  });

  test('play as soon as they are opened', () => {
    const board = new Board().event('story_opened', { story: STORIES[0] });
    assert.equal(board.state.title, STORIES[0].title);
    const [{ type, version, fresh }] = board.effects;
    assert.deepEqual([type, fresh, version.prompts], ['play', false, STORIES[0].prompts]);
  });
});

describe('storyboard', () => {
  test('one prompt becomes shots, which do not play by themselves', () => {
    const board = new Board().wants('  a fox ');
    assert.deepEqual(board.effects, [{ type: 'roll_out', wish: { prompt: 'a fox' } }]);
    board.gets(['one', 'two'], { label: 'Fox' });
    assert.deepEqual([board.state.title, board.version.prompts, board.version.by], ['Fox', ['one', 'two'], 'model']);
    assert.equal(board.effects.length, 1);
    board.event('play_wanted', { fresh: true });
    const { isPlayed, ...played } = board.version;
    assert.deepEqual([board.effects.at(-1), isPlayed], [{ type: 'play', version: played, fresh: true }, true]);
    assert.equal(board.state.note, '2 shots written.');
  });

  test('an empty prompt asks for nothing, and opens no storyboard', () => {
    const board = new Board().wants('  ').edits('x');
    assert.deepEqual([board.effects, board.state], [[{ type: 'want_prompt' }], EMPTY]);
    board.wants('a fox').gets(['one']).edits(' ');
    assert.equal(board.state.note, 'Say first what is to change.');
  });

  test('a change by hand while a version is written is kept, and the version comes', () => {
    const board = new Board().wants('a fox').gets(['one', 'two']).edits('night').event('shot_written', { at: 0, prompt: 'first' });
    assert.deepEqual([board.effects.at(-1).type, board.state.asking.prompt], ['roll_out', 'night']);
    board.gets(['one at night', 'two at night']);
    assert.deepEqual(board.titles, ['First version', 'Edited by hand', 'night']);
    assert.equal(board.state.note, 'The new version is written.');
  });

  test('a change by hand while another story is written stays beside it', () => {
    const board = new Board().wants('a fox').gets(['one']).wants('an owl').event('shot_written', { at: 0, prompt: 'first' }).gets(['two']);
    assert.deepEqual([board.titles, board.state.title], [['First version', 'Edited by hand', 'an owl'], 'an owl']);
  });

  test('a change by hand after a play makes another version, so that its shots are other ones', () => {
    const board = new Board().wants('a fox').gets(['one', 'two']).event('shot_written', { at: 0, prompt: 'first' });
    board.event('play_wanted', { fresh: false });
    const { id } = board.version;
    board.event('shot_moved', { at: 0, by: 1 });
    assert.notEqual(board.version.id, id);
    assert.deepEqual(board.state.versions.map(({ prompts }) => prompts), [['one', 'two'], ['first', 'two'], ['two', 'first']]);
  });

  test('asks before it throws away what was written by hand', () => {
    const board = new Board().wants('a fox').gets(['one']).event('shot_written', { at: 0, prompt: 'first' });
    const { versions } = board.state;
    for (const [type, fields] of [['story_opened', { story: STORIES[0] }], ['rollout_wanted', { prompt: 'x' }], ['closed', {}]]) {
      board.effects = [];
      board.event(type, fields);
      assert.deepEqual([board.state.versions, board.state.replacing.type, board.effects], [versions, type, []]);
      board.event('replacing_declined');
      assert.equal(board.state.replacing, null);
    }
    board.event('story_opened', { story: STORIES[0] }).event('replacing_confirmed');
    assert.deepEqual([board.titles, board.effects.at(-1).type], [['As written'], 'play']);
    board.event('closed').event('replacing_confirmed');
    assert.deepEqual([board.version, board.state.replacing], [null, null], 'nothing of it was written by hand');
  });

  test('each instruction makes a version, and the earlier ones stay', () => {
    const board = new Board().wants('a fox').gets(['one']).edits('make it night');
    assert.deepEqual(board.effects.at(-1).wish, { prompt: 'make it night', current: ['one'] });
    board.gets(['one at night']).edits('add rain').gets(['one at night in rain']);
    assert.deepEqual(board.titles, ['First version', 'make it night', 'add rain']);
    board.event('version_chosen', { id: board.state.versions[1].id });
    assert.deepEqual(board.version.prompts, ['one at night']);
    board.edits('add snow').gets(['one at night in snow']);
    assert.equal(board.titles.length, 4);
    assert.deepEqual(board.version.prompts, ['one at night in snow']);
  });

  test('changes by hand make one version, and leave the one before as it was', () => {
    const board = new Board().wants('a fox').gets(['one', 'two', 'three']);
    board.event('shot_written', { at: 0, prompt: 'first' }).event('shot_moved', { at: 2, by: -1 }).event('shot_removed', { at: 2 });
    assert.deepEqual(board.state.versions.map(({ prompts }) => prompts), [['one', 'two', 'three'], ['first', 'three']]);
    board.event('shot_written', { at: 0, prompt: 'first' }).event('shot_moved', { at: 0, by: -1 });
    assert.equal(board.state.versions.length, 2);
    board.event('version_chosen', { id: board.state.versions[0].id }).event('shot_added', { prompt: 'four' });
    assert.deepEqual(board.version.prompts, ['one', 'two', 'three', 'four']);
    assert.equal(board.state.versions.length, 3);
  });

  test('shots that say nothing are not played and not sent', () => {
    const board = new Board().wants('a fox').gets(['one']).event('shot_added', { prompt: ' ' });
    board.event('play_wanted', { fresh: false });
    assert.deepEqual(board.effects.at(-1).version.prompts, ['one']);
    board.edits('night');
    assert.deepEqual(board.effects.at(-1).wish.current, ['one']);
    board.event('rollout_stopped').event('shot_written', { at: 0, prompt: '' });
    const { length } = board.effects;
    board.event('play_wanted', { fresh: false });
    assert.equal(board.effects.length, length);
  });

  test('shots and versions have limits', () => {
    const board = new Board().wants('a fox').gets(Array(MAX_SHOTS).fill('one')).event('shot_added', { prompt: 'two' });
    assert.equal(board.version.prompts.length, MAX_SHOTS);
    for (let i = 0; i < MAX_VERSIONS + 5; i += 1) board.edits(`change ${i}`).gets(['x']);
    assert.equal(board.state.versions.length, MAX_VERSIONS);
    assert.equal(board.version.title, `change ${MAX_VERSIONS + 4}`);
  });

  test('what no language model has written is said', () => {
    const board = new Board().wants('a fox').gets(['a fox'], { fallback_used: true, reason: 'no language model is configured' });
    assert.match(board.state.note, /^Each shot has your prompt.*no language model is configured/);
    assert.equal(board.version.by, 'page');
  });

  test('a failure is said, and the story stays as it was', () => {
    const board = new Board().wants('a fox').gets(['one']).edits('blood').event('rollout_failed', { message: 'blocked' });
    assert.deepEqual([board.state.note, board.state.isBad, board.state.asking, board.titles], ['blocked', true, null, ['First version']]);
  });

  test('an answer that nobody waits for is dropped', () => {
    const board = new Board().wants('a fox').event('rollout_stopped').gets(['one']).event('rollout_failed', { message: 'late' });
    assert.deepEqual(board.effects.map(({ type }) => type), ['roll_out', 'stop_rollout']);
    assert.deepEqual([board.version, board.state.note], [null, null]);
  });

  test('versions of a later story have other ids', () => {
    const board = new Board().wants('a').gets(['a']);
    const { id } = board.version;
    board.event('closed').wants('b').gets(['b']);
    assert.notEqual(board.version.id, id);
  });

  test('survives a reload, as far as the browser stores it', () => {
    const items = new Map();
    const storage = () => ({
      getItem: (key) => items.get(key) ?? null, setItem: (key, value) => items.set(key, value), removeItem: (key) => items.delete(key),
    });
    const board = new Board().wants('a fox').gets(['one']).edits('night');
    saveBoard(storage, board.state);
    assert.deepEqual(loadBoard(storage), { ...board.state, asking: null });
    saveBoard(storage, EMPTY);
    assert.equal(loadBoard(storage), EMPTY);
    items.set('fastvideo.storyboard', '{"versions": 7}');
    assert.equal(loadBoard(storage), EMPTY);
    saveBoard(storage, board.state);
    const full = () => ({ ...storage(), setItem: () => { throw new Error('full'); } });
    saveBoard(full, board.state);
    assert.equal(loadBoard(storage), EMPTY, 'an older board does not come back');
    const forbidden = () => { throw new Error('forbidden'); };
    saveBoard(forbidden, board.state);
    assert.equal(loadBoard(forbidden), EMPTY);
  });

  test('has words', () => {
    assert.equal(versionWords({ title: 'make it night' }, 1), '2. make it night');
    assert.ok(versionWords({ title: 'a very long instruction that goes on and on' }, 0).length < 40);
    assert.deepEqual(['queued', 'done', '', 'constructor'].map(shotWords), ['waits', 'made', '', '']);
    assert.notEqual(askingWords({ isEdit: true }), askingWords({ isEdit: false }));
  });
});

describe('rollout', () => {
  const answering = (t, status, body) => t.mock.method(globalThis, 'fetch', async () => new Response(JSON.stringify(body), { status }));
  const { signal } = new AbortController();

  test('asks for six shots, or for the story with a change', async (t) => {
    const fetched = answering(t, 200, { prompts: ['one'], label: 'Fox' });
    assert.deepEqual(await rollOut({ prompt: 'a fox' }, signal), { prompts: ['one'], label: 'Fox', model: null, fallback_used: false, reason: null });
    await rollOut({ prompt: 'night', current: ['one'] }, signal);
    const bodies = fetched.mock.calls.map(({ arguments: [path, { body }] }) => [path, JSON.parse(body)]);
    assert.deepEqual(bodies, [
      ['v1/prompts/rollout', { prompt: 'a fox', count: 6 }], ['v1/prompts/rollout', { prompt: 'night', current: ['one'] }],
    ]);
  });

  test('does without a server that has no such route', async (t) => {
    answering(t, 404, {});
    const { prompts, fallback_used } = await rollOut({ prompt: 'a fox' }, signal);
    assert.deepEqual([prompts, fallback_used], [Array(6).fill('a fox'), true]);
  });

  test('is ended by the user', async (t) => {
    t.mock.method(globalThis, 'fetch', (_, { signal: both }) => new Promise((_done, failed) => { both.onabort = () => failed(both.reason); }));
    const ending = new AbortController();
    const asking = rollOut({ prompt: 'a fox' }, ending.signal);
    ending.abort();
    await assert.rejects(asking, /does not answer/);
  });

  test('tells what the server refuses', async (t) => {
    answering(t, 403, { error: { code: 'prompt_blocked', message: 'the prompt is blocked' } });
    await assert.rejects(rollOut({ prompt: 'x' }, signal), /the prompt is blocked/);
  });

  test('takes no answer without shots', () => {
    for (const prompts of [undefined, [], [''], [7], 'one']) assert.throws(() => readRollout({ prompts }), /without any shots/);
  });

  test('puts the instruction behind each shot where nobody rewrites them', () => {
    assert.deepEqual(withoutModel({ prompt: 'make it night', current: ['A fox. ', 'An owl'] }).prompts, ['A fox. make it night', 'An owl. make it night']);
  });
});

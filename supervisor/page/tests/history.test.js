// Tests of the history: what is kept of a session, what is dropped, and what happens when the browser stores nothing.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { HistoryDatabase } from '../history/database.js';
import { canGoOn, continueWords, failureWords, historyWords, lackWords, recordFacts } from '../history/history_words.js';
import { Keeper } from '../history/keeper.js';
import { bytesOf, isSpent, isWhole, mayResume, newestFirst, renewed, summaryOf, surplus } from '../history/record.js';
import { fileOf, filmSource, nameOf } from '../history/replay.js';
import { themeIn } from '../theme/theme_switch.js';
import { PageModel, TOKEN } from './page_model.js';

const record = (id, fields = {}) => ({
  id, token: TOKEN, startedAt: 0, at: 0, prompts: ['a fox'], seconds: 1, resumableUntil: null, media: {}, stateBytes: 0, thumbnail: null, ...fields,
});

/** A database in memory, which may refuse a number of changes. */
class Memory {
  constructor() {
    this.records = new Map();
    this.beside = new Map();
    this.refusals = [];
  }

  async list() { return [...this.records.values()]; }
  async media(id) { return [...this.beside.values()].filter((media) => media.id === id); }
  async state() { return null; }

  async change(id, change, beside = {}) {
    const refusal = this.refusals.shift();
    if (refusal) throw refusal;
    const changed = change(this.records.get(id));
    if (!changed) return;
    this.records.set(id, changed);
    if (beside.media) this.beside.set(`${id}/${beside.media.idx}`, beside.media);
  }

  async remove(ids) { ids.forEach((id) => this.records.delete(id)); }
}

const setUp = (limits = { bytes: 100, sessions: 3 }) => {
  const database = new Memory();
  const seen = { failed: [], changed: 0, isOn: true, now: 0 };
  const keeper = new Keeper({
    database, limits, now: () => { seen.now += 1; return seen.now; }, isOn: () => seen.isOn,
    failed: (reason) => seen.failed.push(reason), changed: () => { seen.changed += 1; },
  });
  return { database, keeper, seen };
};

const finished = (id = 's1') => new PageModel().event('connect').opens({ id }).starts(0, 'a fox').streams(0).completes(0).state;
const media = (size) => ({ blob: new Blob([new Uint8Array(size)]), initBytes: 2 });

describe('record', () => {
  test('is made of the finished segments', () => {
    const page = PageModel.active().starts(0, 'a fox');
    assert.equal(summaryOf(page.state), null);
    page.streams(0).completes(0).starts(1, 'A HARE', { original_prompt: 'a hare' }).streams(1).completes(1).starts(2, 'x');
    assert.deepEqual(summaryOf(page.state), {
      id: 's1', token: TOKEN, watchToken: null, hasFilm: false, isPictures: false, isAtCap: false, prompts: ['a fox', 'a hare'], seconds: 2, resumableUntil: null,
    });
  });

  test('cannot be resumed with all its segments, unless the server extends it', () => {
    const atCap = (limits) => {
      const page = new PageModel().event('connect').opens({ limits }).starts(0, 'a fox').streams(0).completes(0);
      return summaryOf(page.says('ltx2_stream_complete', { reason: 'segment_cap' }).state);
    };
    assert.deepEqual([atCap({}).isAtCap, atCap({}).resumableUntil], [true, 0]);
    assert.equal(atCap({ max_cap_extensions: 1 }).resumableUntil, null);
    assert.match(continueWords(record('s', { ...atCap({}), id: 's' }), 1), /has all its segments/);
  });

  test('keeps what it had', () => {
    const before = record('s1', { startedAt: 5, media: { 0: 7 }, stateBytes: 3 });
    const summary = { id: 's1', token: null, watchToken: null, hasFilm: true, isPictures: false, isAtCap: true, prompts: ['a', 'b'], seconds: 2, resumableUntil: 9 };
    const after = renewed({ ...before, watchToken: 'w1' }, summary, 8);
    assert.deepEqual(after, { ...before, ...summary, token: TOKEN, watchToken: 'w1', at: 8 });
    assert.equal(bytesOf(after), 10);
    assert.deepEqual([isWhole(after), isWhole({ ...after, media: { 0: 7, 1: 7 } })], [false, true]);
  });

  test('may be resumed until the server drops it', () => {
    assert.equal(mayResume(record('s', { resumableUntil: 10 }), 9), true);
    assert.equal(mayResume(record('s', { resumableUntil: 10 }), 10), false);
    assert.equal(mayResume(record('s', { at: 0 }), 299_000), true);
    assert.equal(mayResume(record('s', { at: 0 }), 301_000), false);
    assert.equal(mayResume(record('s', { token: null }), 0), false);
  });

  test('has a token of no use once the session cannot go on and has no film', () => {
    const of = (fields) => record('s', { resumableUntil: 10, hasFilm: false, ...fields });
    assert.deepEqual([isSpent(of(), 9), isSpent(of(), 10), isSpent(of({ token: null }), 10)], [false, true, false]);
    assert.deepEqual([isSpent(of({ hasFilm: true }), 10), isSpent(of({ hasFilm: undefined }), 10)], [false, false]);
  });

  test('the oldest are dropped, and the newest stays', () => {
    const of = (id, at, bytes) => record(id, { at, media: { 0: bytes } });
    assert.deepEqual(surplus([of('a', 1, 40), of('b', 2, 40), of('c', 3, 40)], { bytes: 100, sessions: 9 }), ['a']);
    assert.deepEqual(surplus([of('a', 1, 1), of('b', 2, 1), of('c', 3, 1)], { bytes: 100, sessions: 2 }), ['a']);
    assert.deepEqual(surplus([of('a', 1, 500)], { bytes: 100, sessions: 2 }), []);
    assert.deepEqual(newestFirst([of('a', 1, 1), of('b', 2, 1)]).map(({ id }) => id), ['b', 'a']);
  });

  test('has words', () => {
    assert.equal(continueWords(record('s', { resumableUntil: 60_000 }), 0), 'Goes on where it was, for another 60 s');
    assert.equal(continueWords(record('s', { token: null, stateBytes: 1 }), 0), 'Goes on from its saved state');
    assert.match(continueWords(record('s', { token: null }), 0), /^It cannot go on/);
    assert.deepEqual([canGoOn(record('s', { token: null }), 0), canGoOn(record('s', { token: null, stateBytes: 1 }), 0)], [false, true]);
    assert.equal(historyWords([]), '');
    assert.match(historyWords([record('s', { media: { 0: 1024 * 1024 } })]), /^1\.0 of 512 MiB used/);
    assert.deepEqual(recordFacts(record('s'))[0], ['length', '0:01']);
    assert.notEqual(failureWords('full').title, failureWords('denied').title);
    assert.equal(lackWords(record('s', { media: { 0: 5 } })), '');
    assert.match(lackWords(record('s', { prompts: ['a', 'b'], media: { 0: 5 } })), /^The film is incomplete: this browser has 1 of 2 segments\. .* from the server/);
    assert.match(lackWords(record('s', { token: null })), /^The film is incomplete: this browser has 0 of 1 segment\.$/);
    assert.match(lackWords(record('s', { isPictures: true })), /^JPEG frames/);
  });
});

describe('keeper', () => {
  test('keeps a session with its media, and writes only what is new', async () => {
    const { database, keeper, seen } = setUp();
    const state = finished();
    keeper.observe(state);
    keeper.observe(state);
    keeper.keepMedia('s1', 0, media(10));
    await keeper.keepState('s1', { kind: 'k', payload: {} });
    await keeper.work;
    const kept = database.records.get('s1');
    assert.deepEqual([kept.prompts, kept.media, kept.stateBytes > 0, seen.changed], [['a fox'], { 0: 10 }, true, 3]);
  });

  test('keeps nothing of a session before its first segment is finished, and no media without it', async () => {
    const { database, keeper } = setUp();
    keeper.observe(PageModel.active().starts(0, 'a').state);
    keeper.keepMedia('s1', 0, media(10));
    await keeper.work;
    assert.deepEqual([database.records.size, database.beside.size], [0, 0]);
  });

  test('drops the oldest session when there are too many bytes, and no media of the only one', async () => {
    const { database, keeper } = setUp();
    database.records.set('old', record('old', { media: { 0: 95 } }));
    keeper.observe(finished());
    keeper.keepMedia('s1', 0, media(60));
    keeper.keepMedia('s1', 1, media(60));
    await keeper.work;
    assert.deepEqual([...database.records.keys()], ['s1']);
    assert.deepEqual(database.records.get('s1').media, { 0: 60 });
  });

  test('makes room where the browser has none, and tells once where that does not help', async () => {
    const { database, keeper, seen } = setUp();
    const full = new DOMException('full', 'QuotaExceededError');
    database.records.set('old', record('old'));
    database.refusals = [full];
    keeper.observe(finished());
    await keeper.work;
    assert.deepEqual([[...database.records.keys()], seen.failed], [['s1'], []]);
    database.refusals = [full, new Error('denied')];
    keeper.keepMedia('s1', 0, media(1));
    keeper.keepMedia('s1', 1, media(1));
    await keeper.work;
    assert.deepEqual(seen.failed, ['full']);
  });

  test('drops one session after the other until there is room, and tells of a later failure again', async () => {
    const { database, keeper, seen } = setUp({ bytes: 100, sessions: 9 });
    const full = new DOMException('full', 'QuotaExceededError');
    for (const id of ['a', 'b', 'c']) database.records.set(id, record(id, { at: -1 }));
    database.refusals = [full, full];
    keeper.observe(finished());
    await keeper.work;
    assert.deepEqual([database.records.size, database.records.has('s1'), seen.failed], [2, true, []]);
    for (let i = 0; i < 2; i += 1) {
      database.refusals = [new Error('denied')];
      keeper.keepMedia('s1', 0, media(1));
      keeper.keepMedia('s1', 0, media(1));
      await keeper.work;
    }
    assert.deepEqual(seen.failed, ['denied', 'denied']);
  });

  test('forgets tokens that are of no use any more', async () => {
    const { database, keeper } = setUp();
    database.records.set('a', record('a', { hasFilm: false, resumableUntil: 0 }));
    database.records.set('b', record('b', { hasFilm: true, resumableUntil: 0, watchToken: 'w' }));
    await keeper.forgetSpent();
    assert.deepEqual([database.records.get('a').token, database.records.get('b').token], [null, TOKEN]);
    await keeper.forget('b');
    const { token, watchToken } = database.records.get('b');
    assert.deepEqual([token, watchToken], [null, null]);
    await keeper.forget('s1');
    keeper.observe(finished());
    await keeper.work;
    assert.equal(database.records.get('s1').token, null, 'the page still has it');
  });

  test('tells when a session could not be deleted, and goes on', async () => {
    const { database, keeper } = setUp();
    database.remove = async () => { throw new Error('denied'); };
    await assert.rejects(keeper.remove(['s2']), /denied/);
    keeper.observe(finished());
    await keeper.work;
    assert.ok(database.records.has('s1'));
  });

  test('keeps nothing where the user wants no history, or has deleted the session', async () => {
    const { database, keeper, seen } = setUp();
    seen.isOn = false;
    keeper.observe(finished());
    await keeper.work;
    assert.equal(database.records.size, 0);
    seen.isOn = true;
    keeper.observe(finished('s2'));
    await keeper.remove(['s2']);
    keeper.keepMedia('s2', 0, media(1));
    await keeper.work;
    assert.equal(database.records.size, 0);
  });
});

describe('replay', () => {
  test('joins the media, with one init segment', async () => {
    const part = (idx, text) => ({ id: 's', idx, blob: new Blob([text]), initBytes: 2 });
    assert.equal(await (await fileOf([part(0, 'IIone'), part(1, 'IItwo')])).text(), 'IIonetwo');
  });

  test('comes from the server where the browser has not all of it', async (t) => {
    const film = { mime: 'video/mp4', segments: [{ kept: true }, { kept: true }] };
    t.mock.method(globalThis, 'fetch', async () => new Response(JSON.stringify(film)));
    const partial = record('s1', { prompts: ['a', 'b'], media: { 0: 5 }, watchToken: 'w1' });
    const hooks = { mediaOf: async () => [], forget: () => assert.fail('the server has it') };
    assert.equal(await filmSource(partial, hooks), 'v1/sessions/s1/film.mp4?download=fastvideo-s1.mp4&token=w1');
    film.segments[0].kept = false;
    await assert.rejects(filmSource(partial, hooks), /not kept any more/);
    film.mime = null;
    await assert.rejects(filmSource(partial, hooks), /not kept any more/);
    assert.equal(nameOf(partial), 'fastvideo-s1.mp4');
  });

  test('is told where the server does not have the session any more', async (t) => {
    const forgotten = [];
    const hooks = { mediaOf: async () => [], forget: (id) => forgotten.push(id) };
    for (const status of [404, 503]) {
      t.mock.method(globalThis, 'fetch', async () => new Response('{}', { status }));
      await assert.rejects(filmSource(record('s1'), hooks), /not kept any more/);
    }
    assert.deepEqual(forgotten, ['s1']);
  });
});

test('a transaction without room fails with the reason, which is known only at its end', async () => {
  const transaction = { error: null, objectStore: () => ({}) };
  const writing = new HistoryDatabase({ transaction: () => transaction }).write(() => {});
  transaction.onerror?.(); // the error of a request comes first
  transaction.error = new DOMException('full', 'QuotaExceededError');
  transaction.onabort();
  await assert.rejects(writing, { name: 'QuotaExceededError' });
});

test('an unknown theme is the system’s', () => {
  assert.deepEqual(['light', 'dark', 'toString', null, undefined].map(themeIn), ['light', 'dark', 'system', 'system', 'system']);
});

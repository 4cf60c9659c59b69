// Tests of the parts of the tab for video jobs: the list, the requests, the keys that make a job one job, and the words.

import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';

import { useKey } from '../api.js';
import { tabAfter } from '../tabs.js';
import { JobList } from '../videos/job_list.js';
import {
  cancelVideo, createVideo, deleteVideo, extendVideo, listVideos, offersVideos, remixVideo, videoAddress, waitForVideo,
} from '../videos/requests.js';
import { Submission } from '../videos/submission.js';
import { endWords, listFailureWords, refusalWords, videoWords } from '../words.js';

const job = (id, status = 'queued', fields = {}) => ({ id, status, prompt: `prompt ${id}`, queue_position: null, error: null, ...fields });
const page = (data, hasMore = false) => ({ data, has_more: hasMore });
const ids = (jobs) => jobs.map(({ id }) => id).join('');

describe('the list of jobs', () => {
  test('has the newest first, and each job once', () => {
    const list = new JobList();
    list.refresh(page([job('b'), job('a')]));
    list.add(job('c'));
    list.put(job('b', 'in_progress'));
    assert.equal(ids(list.jobs), 'cba');
    assert.equal(list.get('b').status, 'in_progress');
  });

  test('tells which jobs have ended since they were seen last', () => {
    const list = new JobList();
    assert.deepEqual(list.refresh(page([job('b'), job('a', 'completed')])), []);
    assert.equal(list.put(job('b', 'in_progress')), false);
    assert.equal(ids(list.refresh(page([job('b', 'failed'), job('a', 'completed')]))), 'b');
    assert.equal(list.put(job('b', 'failed')), false);
  });

  test('does not begin a job again that has ended, nor bring a deleted one back', () => {
    const list = new JobList();
    list.refresh(page([job('b', 'completed'), job('a')]));
    list.remove('a');
    list.refresh(page([job('b', 'in_progress'), job('a')]));
    assert.equal(ids(list.jobs), 'b');
    assert.equal(list.get('b').status, 'completed');
  });

  test('loses a job that the server has no more', () => {
    const list = new JobList();
    list.refresh(page([job('c'), job('b'), job('a')]));
    list.refresh(page([job('c'), job('a')]));
    assert.equal(ids(list.jobs), 'ca');
  });

  test('keeps a job that was made after the page was asked for', () => {
    const list = new JobList();
    list.expectPage();
    list.add(job('b'));
    list.refresh(page([job('a')]));
    assert.equal(ids(list.jobs), 'ba');
    list.expectPage();
    list.refresh(page([job('a')]));
    assert.equal(ids(list.jobs), 'a');
  });

  test('grows by pages, which stay when the first one is seen again', () => {
    const list = new JobList();
    list.refresh(page([job('f'), job('e')], true));
    assert.deepEqual([list.last, list.hasMore], ['e', true]);
    list.append(page([job('d'), job('c')], false));
    list.refresh(page([job('g'), job('f')], true));
    assert.deepEqual([ids(list.jobs), list.hasMore], ['gfedc', false]);
  });

  test('begins anew when there are so many new jobs that some are not known', () => {
    const list = new JobList();
    list.refresh(page([job('b'), job('a')], false));
    list.refresh(page([job('z'), job('y')], true));
    assert.deepEqual([ids(list.jobs), list.hasMore], ['zy', true]);
  });

  test('asks about running jobs first, and about those of which it has not heard for the longest time', () => {
    const list = new JobList();
    list.refresh(page([
      job('f', 'queued', { queue_position: 1 }), job('e', 'queued', { queue_position: 0 }), job('d', 'in_progress'), job('c', 'in_progress'),
      job('b', 'completed'), job('a', 'failed'),
    ]));
    const answeredAt = { d: 2, c: 1 };
    assert.equal(ids(list.unfinished((id) => answeredAt[id] ?? 0)), 'cdef');
  });
});

describe('requests', () => {
  const real = globalThis.fetch;
  afterEach(() => {
    globalThis.fetch = real;
    useKey('');
  });

  /** Answers the next requests, and returns what was sent. */
  function answer(status, body) {
    const sent = [];
    globalThis.fetch = async (path, options) => {
      sent.push({ path, ...options });
      return new Response(typeof body === 'string' ? body : JSON.stringify(body), { status });
    };
    return sent;
  }

  test('go to the routes of video jobs, with the key of the page', async () => {
    const sent = answer(200, { data: [] });
    useKey('fvk_one');
    const form = new FormData();
    await listVideos();
    await listVideos({ after: 'video_1' });
    await waitForVideo('video_1', 25, new AbortController().signal);
    await createVideo(form, 'k');
    await remixVideo('video_1', { prompt: 'other' }, 'k');
    await extendVideo('video_1', { prompt: 'more', seconds: '2' }, 'k');
    await cancelVideo('video_1');
    await deleteVideo('video_1');
    assert.deepEqual(sent.map(({ method = 'GET', path }) => `${method} ${path}`), [
      'GET v1/videos?limit=20', 'GET v1/videos?limit=20&after=video_1', 'GET v1/videos/video_1?wait_seconds=25', 'POST v1/videos',
      'POST v1/videos/video_1/remix', 'POST v1/videos/extensions', 'POST v1/videos/video_1/cancel', 'DELETE v1/videos/video_1',
    ]);
    for (const { headers } of sent) assert.equal(headers.authorization, 'Bearer fvk_one');
    assert.deepEqual(sent.map(({ headers }) => headers['idempotency-key']).filter(Boolean), ['k', 'k', 'k']);
    assert.equal(sent[3].body, form);
    assert.equal('content-type' in sent[3].headers, false); // the browser names the boundary
    assert.deepEqual(JSON.parse(sent[5].body), { video: { id: 'video_1' }, prompt: 'more', seconds: '2' });
    assert.equal(videoAddress('video_1', 'thumbnail'), 'v1/videos/video_1/content?variant=thumbnail');
  });

  test('keep all digits of a seed, and leave texts alone', async () => {
    const prompt = 'a "seed":12 and \\"seed":34';
    answer(200, `{"prompt":${JSON.stringify(prompt)},"seed":18446744073709551615,"metadata":{"seed":"7"}}`);
    const made = await waitForVideo('video_1', 0, new AbortController().signal);
    assert.deepEqual(made, { prompt, seed: '18446744073709551615', metadata: { seed: '7' } });
  });

  test('that are refused tell the field', async () => {
    answer(400, { error: { message: '`size`: expected at most 9 pixels, got 4x4', param: 'size', code: 'invalid_value' } });
    const message = '`size`: expected at most 9 pixels, got 4x4';
    await assert.rejects(createVideo(new FormData(), 'k'), { status: 400, param: 'size', message });
  });

  test('that nobody answers say so', async () => {
    globalThis.fetch = async () => { throw new TypeError('failed to fetch'); };
    await assert.rejects(cancelVideo('video_1'), { message: 'the server does not answer' });
    await assert.rejects(offersVideos(), { message: 'the server does not answer' });
  });

  test('find out whether the server makes videos', async () => {
    const check = async (status, body, expected) => {
      answer(status, body);
      assert.equal(await offersVideos(), expected, `${status}`);
    };
    await check(200, { object: 'list', data: [] }, true);
    await check(200, '<!doctype html>', false);
    await check(401, { error: { message: 'a key is needed' } }, true);
    for (const status of [403, 404, 405, 501]) await check(status, {}, false);
    for (const status of [408, 429, 500, 502, 503]) {
      answer(status, {});
      await assert.rejects(offersVideos(), { status });
    }
  });
});

describe('a submission', () => {
  /** Returns one with keys that count. */
  const submission = () => {
    let count = 0;
    return new Submission(() => `key ${count += 1}`);
  };

  test('is sent again with its key until the server has the job', async () => {
    const form = submission();
    const keys = [];
    const send = (outcome) => (key) => {
      keys.push(key);
      return outcome;
    };
    await assert.rejects(form.send('fox', send(Promise.reject(new Error('no answer')))));
    await form.send('fox', send(Promise.resolve('job')));
    await form.send('fox', send(Promise.resolve('another job')));
    assert.deepEqual(keys, ['key 1', 'key 1', 'key 2']);
  });

  test('has another key when it asks for something else', async () => {
    const form = submission();
    const keys = [];
    for (const content of ['fox', 'owl']) {
      await assert.rejects(form.send(content, async (key) => {
        keys.push(key);
        throw new Error('refused');
      }));
    }
    assert.deepEqual(keys, ['key 1', 'key 2']);
  });

  test('is sent once by a double click', async () => {
    const form = submission();
    let sent = 0;
    const clicks = [1, 2].map(() => form.send('fox', async () => sent += 1));
    assert.deepEqual(await Promise.all(clicks), [1, null]);
    assert.equal(sent, 1);
  });

  test('has a key that the server takes', async () => {
    const keys = await Promise.all([1, 2].map(() => new Submission().send('fox', async (key) => key)));
    for (const key of keys) assert.match(key, /^[0-9a-f]{32}$/);
    assert.notEqual(keys[0], keys[1]);
  });
});

describe('words', () => {
  test('say what a job does', () => {
    const check = (fields, expected) => assert.equal(videoWords({ ...job('a'), ...fields }), expected);
    check({}, 'Queued');
    check({ queue_position: 0 }, 'Queued, next in line');
    check({ queue_position: 1 }, 'Queued, 2nd in line');
    check({ status: 'in_progress', phase: 'generating', progress: 42 }, 'Generating, 42%');
    check({ status: 'in_progress', phase: 'waiting', progress: 42 }, 'Waiting for a GPU, 42%');
    check({ status: 'in_progress', phase: 'storing', progress: 99 }, 'Storing, 99%');
    check({ status: 'completed' }, 'Finished');
    check({ status: 'failed', error: { code: 'cancelled', message: 'the job was cancelled' } }, 'Cancelled');
    check({ status: 'failed', error: { code: 'out_of_memory', message: 'ask for a smaller size' } }, 'Failed: ask for a smaller size');
    assert.equal(endWords(job('a', 'completed')), 'Finished: “prompt a”');
  });

  test('say why a request is refused, without the name of the field that they stand at', () => {
    assert.equal(refusalWords('`size`: expected at most 9 pixels, got 4x4', 'size'), 'Expected at most 9 pixels, got 4x4.');
    assert.equal(refusalWords('`prompt` is required', 'prompt'), '`prompt` is required.');
    assert.equal(refusalWords('too many jobs wait'), 'Too many jobs wait.');
    assert.equal(listFailureWords({ status: 401, message: 'for authors of clients' }), 'The server asks for a key.');
    assert.equal(listFailureWords({ message: 'the server does not answer' }), 'The server does not answer.');
  });
});

test('the keys of the tabs go around', () => {
  const check = (key, at, expected) => assert.equal(tabAfter(key, at, 2), expected);
  check('ArrowRight', 0, 1);
  check('ArrowRight', 1, 0);
  check('ArrowLeft', 0, 1);
  check('Home', 1, 0);
  check('End', 0, 1);
  check('Enter', 0, null);
});

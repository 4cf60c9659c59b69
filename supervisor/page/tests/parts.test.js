// Tests of the smaller parts: the store, the recording, the attachments, the GPUs and the formats.

import assert from 'node:assert/strict';
import { readFile, readdir } from 'node:fs/promises';
import { afterEach, describe, test } from 'node:test';

import { ofServer } from '../address.js';
import { filmAddress } from '../api.js';
import { checkShape, imageType, readState } from '../attachments.js';
import { openAround } from '../dom.js';
import { Film } from '../film.js';
import { clock, gib, ordinal, plural, seconds, sentence, span } from '../format.js';
import { exitWords, gpuState, paceWords } from '../gpus.js';
import { createStore } from '../store.js';
import { videoAddress } from '../videos/requests.js';

describe('store', () => {
  const setUp = (parts) => {
    const seen = { rendered: [], failed: [] };
    const store = createStore({
      state: [], reduce: (state, event, now) => ({ state: [...state, `${event}@${now}`], effects: [event] }), run: () => {},
      render: (state) => seen.rendered.push(state.length), now: () => 7, failed: (error) => seen.failed.push(error.message), ...parts,
    });
    return { store, seen };
  };

  test('gives each event its time and renders each state', () => {
    const { store, seen } = setUp();
    store.dispatch('a');
    store.dispatch('b');
    assert.deepEqual(store.state, ['a@7', 'b@7']);
    assert.deepEqual(seen.rendered, [1, 2]);
  });

  test('does not render a state that has not changed', () => {
    const { store, seen } = setUp({ reduce: (state) => ({ state, effects: [] }) });
    store.dispatch('a');
    assert.deepEqual(seen.rendered, []);
  });

  test('takes an event that an effect causes after the one that caused it', () => {
    const order = [];
    const { store } = setUp({
      run(event) {
        order.push(`run ${event}`);
        if (event === 'a') store.dispatch('b');
        order.push(`ran ${event}`);
      },
    });
    store.dispatch('a');
    assert.deepEqual(order, ['run a', 'ran a', 'run b', 'ran b']);
  });

  test('goes on after an event, an effect or a view that throws', () => {
    const { store, seen } = setUp({
      reduce(state, event) {
        if (event === 'bad') throw new Error('in the reducer');
        return { state: [...state, event], effects: ['bad', event] };
      },
      run(effect) { if (effect === 'bad') throw new Error('in an effect'); },
      render(state) {
        seen.rendered.push(state.length);
        if (state.length === 1) throw new Error('in the view');
      },
    });
    for (const event of ['bad', 'a', 'b']) store.dispatch(event);
    assert.deepEqual(store.state, ['a', 'b']);
    assert.deepEqual(seen.rendered, [1, 2]);
    assert.deepEqual(seen.failed, ['in the reducer', 'in an effect', 'in the view', 'in an effect']);
  });
});

test('all addresses are relative, so that a proxy can serve the page below a path', async () => {
  const page = new URL('../', import.meta.url);
  const names = await readdir(page, { recursive: true });
  const files = names.filter((name) => /\.(js|html|css)$/.test(name) && !name.startsWith('tests'));
  assert.ok(files.includes('index.html') && files.includes('page.css') && files.includes('session/lifecycle.js'));
  for (const name of files) {
    const text = await readFile(new URL(name, page), 'utf8');
    assert.doesNotMatch(text, /(href|src|action)="\//, name);
    assert.doesNotMatch(text, /url\(['"]?\//, name);
    assert.doesNotMatch(text, /(fetch|ask|URL|WebSocket|import|from)\s*\(?\s*['"`]\//, name);
    assert.doesNotMatch(text, /['"`]\/(v1|status|health|ready)/, name);
  }
});

describe('the address of a route', () => {
  const real = globalThis.document;
  afterEach(() => { globalThis.document = real; });

  test('is beside the page', () => {
    assert.equal(ofServer('status'), 'status');
    assert.match(filmAddress({ session_id: 's', token: 't' }, 'n'), /^v1\/sessions\/s\/film\.mp4\?/);
  });

  test('is above the page where the page lies in a folder', () => {
    globalThis.document = { documentElement: { dataset: { server: '../' } } };
    assert.equal(ofServer('status'), '../status');
    assert.match(filmAddress({ session_id: 's', token: 't' }, 'n'), /^\.\.\/v1\/sessions\/s\/film\.mp4\?/);
    assert.equal(videoAddress('video_1', 'video'), '../v1/videos/video_1/content?variant=video');
  });

  test('is what every request takes', async () => {
    const page = new URL('../', import.meta.url);
    const names = await readdir(page, { recursive: true });
    for (const name of names.filter((name) => name.endsWith('.js') && !name.startsWith('tests'))) {
      const text = await readFile(new URL(name, page), 'utf8');
      assert.doesNotMatch(text, /(fetch|new URL)\((?!ofServer\(|url\)|'watch')/, name);
    }
  });
});

test('all closed details around a field are opened', () => {
  const details = [{ open: true }, { open: false }, { open: false }];
  openAround({ closest: () => details.find(({ open }) => !open) ?? null });
  assert.deepEqual(details.map(({ open }) => open), [true, true, true]);
});

describe('film', () => {
  const bytes = (...values) => new Uint8Array(values);
  const file = async (film, indices) => [...new Uint8Array(await (await film.file(indices)).arrayBuffer())];
  const place = (idx, state = 'done') => ({ idx, state, start: idx, duration: 1 });

  test('is one file with one init segment when they are alike', async () => {
    const film = new Film(() => []);
    for (const idx of [0, 1]) {
      film.add(idx, bytes(1, 2));
      film.add(idx, bytes(10 + idx));
      film.finish(idx);
    }
    assert.deepEqual(await file(film, [0, 1]), [1, 2, 10, 11]);
  });

  test('has another init segment where it differs', async () => {
    const film = new Film(() => []);
    for (const idx of [0, 1]) {
      film.add(idx, bytes(idx));
      film.add(idx, bytes(10 + idx));
      film.finish(idx);
    }
    assert.deepEqual(await file(film, [0, 1]), [0, 10, 1, 11]);
  });

  test('gives a segment to the player, message by message until it is finished', async () => {
    const film = new Film(() => [place(0)]);
    film.begin(0, 'video/mp4');
    film.add(0, bytes(1, 2));
    const growing = film.growing(0);
    film.add(0, bytes(3));
    assert.deepEqual(growing, [bytes(1, 2), bytes(3)]);
    assert.deepEqual([film.size(0), film.isWhole(0), film.mimeOf(0)], [0, false, 'video/mp4']);
    film.finish(0);
    assert.deepEqual([growing.length, film.growing(0), film.size(0)], [2, null, 3]);
    assert.deepEqual(await film.load(0), [bytes(1, 2, 3)]);
  });

  test('forgets media that are void, and knows nothing of other segments', async () => {
    const film = new Film(() => []);
    film.add(0, bytes(1));
    film.drop(0);
    film.add(0, bytes(2));
    film.finish(0);
    film.finish(5);
    assert.deepEqual(await file(film, [0, 5, 9]), [2]);
    assert.equal(await film.load(9), null);
    film.clear();
    assert.equal(film.size(0), 0);
  });

  test('has segments fetched that were never received, and not those that the server lost', async () => {
    let now = 0;
    const answers = [() => { throw new Error('the server does not answer'); }, () => bytes(7), () => null];
    const film = new Film(() => [place(0), place(1, 'streaming')], () => async () => answers.shift()(), () => now);
    assert.deepEqual([film.isAtServer(place(0)), film.isAtServer(place(1, 'streaming'))], [true, false]);
    assert.equal(await film.load(0), null);
    assert.deepEqual([film.isAtServer(place(0)), film.isDue(0)], [true, false]);
    now += 2000;
    assert.equal(film.isDue(0), true);
    assert.deepEqual(await film.load(0), [bytes(7)]);
    assert.equal(await film.load(0), null);
    assert.equal(film.isAtServer(place(0)), false);
    assert.equal(new Film(() => [place(0)]).isAtServer(place(0)), false);
  });
});

describe('files', () => {
  test('a saved state has a kind and a payload', () => {
    assert.deepEqual(readState('{"kind": "ltx2.v1", "payload": {"a": 1}}'), { kind: 'ltx2.v1', payload: { a: 1 } });
    for (const text of ['null', '{}', '{"kind": "x"}', '{"kind": "x", "payload": null}', '{"kind": 1, "payload": {}}', '[]']) {
      assert.throws(() => readState(text), /It is not a saved state\. Choose a file that “Save state” has made/, text);
    }
    assert.throws(() => readState('hello'), /It is not a saved state/);
  });

  test('the bytes of an initial image tell its type', () => {
    const png = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 13];
    const webp = [...'RIFF\0\0\0\0WEBP'].map((c) => c.charCodeAt(0));
    const jpeg = [0xff, 0xd8, 0xff, 0xe0];
    assert.deepEqual([png, jpeg, webp].map((bytes) => imageType(new Uint8Array(bytes), 1)), ['image/png', 'image/jpeg', 'image/webp']);
    const avi = webp.with(8, 0x41);
    for (const bytes of [[], [0xff, 0xd8], png.slice(0, 7), avi, [...'GIF89a'].map((c) => c.charCodeAt(0))]) {
      assert.throws(() => imageType(new Uint8Array(bytes), 1), /not a PNG, JPEG or WebP picture/);
    }
  });

  test('an initial image has at most 32 MiB, and is not too thin', () => {
    const jpeg = new Uint8Array([0xff, 0xd8, 0xff]);
    imageType(jpeg, 32 * 1024 * 1024);
    assert.throws(() => imageType(jpeg, 33 * 1024 * 1024), /has 33.0 MiB/);
    checkShape(160, 10);
    checkShape(1, 16);
    assert.throws(() => checkShape(161, 10), /16 times as long as wide/);
    assert.throws(() => checkShape(1, 17), /Crop it/);
  });
});

describe('GPUs', () => {
  test('have a state, also where a server tells little', () => {
    const cases = [
      [{ state: 'warming_up' }, 'warming_up'], [{ state: { state: 'BackingOff' } }, 'backing_off'], [{ state: { Loading: {} } }, 'loading'],
      [{ process_alive: false }, 'exited'], [{ ready: true }, 'ready'], [{ ready: true, available: false }, 'busy'], [{}, 'loading'],
    ];
    for (const [gpu, state] of cases) assert.equal(gpuState(gpu), state);
  });

  test('say how a process ended', () => {
    assert.equal(exitWords({ kind: 'crashed', uptime_seconds: 90, reason: 'signal 9' }), 'crashed after 90 s: signal 9');
    assert.equal(exitWords('made_up'), 'made up');
    const paces = [[0.5, '2.00× real time'], [0.01, '100× real time'], [1.25, '0.80× real time, too slow'], [null, ''], [undefined, ''], [0, '']];
    for (const [factor, words] of paces) assert.equal(paceWords(factor), words);
  });
});

test('numbers are words', () => {
  assert.deepEqual([seconds(null), seconds(1234), seconds(12_345)], ['', '1.23 s', '12.3 s']);
  assert.deepEqual([clock(0), clock(3.999), clock(75)], ['0:00', '0:04', '1:15']);
  assert.deepEqual([span(0.4), span(90), span(600), span(7200)], ['less than 1 s', '90 s', '10 min', '2.0 h']);
  assert.deepEqual([1, 2, 3, 4, 11, 12, 21, 112].map(ordinal), ['1st', '2nd', '3rd', '4th', '11th', '12th', '21st', '112th']);
  assert.deepEqual([plural(1, 'GPU'), plural(2, 'GPU')], ['1 GPU', '2 GPUs']);
  assert.deepEqual([sentence('a b'), sentence('A?'), sentence(''), sentence(undefined), sentence(7)], ['A b.', 'A?', '', '', '7.']);
  assert.deepEqual([gib(512 * 1024 ** 2), gib(1.5 * 1024 ** 3)], ['512 MiB', '1.5 GiB']);
});

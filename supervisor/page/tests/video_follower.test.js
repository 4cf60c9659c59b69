// Tests of what keeps the list of video jobs up to date, with a server that the test plays and a clock that it turns on.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Follower } from '../videos/follower.js';
import { JobList } from '../videos/job_list.js';
import { Clock } from './clock.js';

const job = (id, status = 'in_progress', fields = {}) => ({ id, status, queue_position: null, error: null, ...fields });

/** Lets the promises of the page settle. */
const settle = () => new Promise(setImmediate);

class World {
  constructor() {
    this.clock = new Clock();
    this.list = new JobList();
    this.requests = []; // those that are open
    this.said = [];
    const server = { firstPage: (signal) => this.request('list', signal), job: (id, seconds, signal) => this.request(id, signal) };
    this.follower = new Follower(this.list, server, {
      changed: () => {},
      ended: ({ id }) => this.said.push(`${id} ended`),
      failed: ({ message }) => this.said.push(message),
    }, this.clock);
  }

  /** Returns a world in which the list of these jobs was just seen. */
  static async following(...jobs) {
    const world = new World();
    world.follower.start();
    await world.answer('list', { data: jobs, has_more: false });
    return world;
  }

  request(of, signal) {
    return new Promise((answer, fail) => {
      const request = { of, answer, fail };
      this.requests.push(request);
      signal.onabort = () => {
        this.close(request);
        fail(new Error('aborted'));
      };
    });
  }

  close(request) {
    this.requests = this.requests.filter((open) => open !== request);
  }

  take(of) {
    const request = this.requests.find((open) => open.of === of);
    assert.ok(request, `${of} is asked for, of ${this.open}`);
    this.close(request);
    return request;
  }

  async answer(of, body) {
    this.take(of).answer(body);
    await settle();
  }

  async fail(of, fields = {}) {
    this.take(of).fail(Object.assign(new Error('no answer'), fields));
    await settle();
  }

  async wait(ms) {
    this.clock.advance(ms);
    await settle();
  }

  get open() { return this.requests.map(({ of }) => of).sort().join(' '); }
}

test('each unfinished job is asked about once at a time', async () => {
  const world = await World.following(job('b'), job('a', 'completed'));
  assert.equal(world.open, 'b');
  world.follower.poll();
  assert.equal(world.open, 'b');
  await world.answer('b', job('b', 'in_progress', { progress: 5 }));
  assert.equal(world.list.get('b').progress, 5);
  assert.equal(world.open, ''); // progress may change many times a second
  await world.wait(250);
  assert.equal(world.open, 'b');
});

test('a job that ends is told of, and asked about no more', async () => {
  const world = await World.following(job('a'));
  await world.answer('a', job('a', 'completed'));
  assert.deepEqual(world.said, ['a ended']);
  await world.wait(250);
  assert.equal(world.open, 'list'); // the others move up
  await world.answer('list', { data: [job('a', 'completed')], has_more: false });
  assert.equal(world.open, '');
  assert.deepEqual(world.said, ['a ended']);
});

test('few requests are open, and running jobs take turns before those that wait', async () => {
  const jobs = ['f', 'e', 'd', 'c', 'b'].map((id) => job(id)).concat(job('a', 'queued', { queue_position: 0 }));
  const world = await World.following(...jobs);
  assert.equal(world.open, 'd e f');
  await world.wait(10);
  await world.answer('f', job('f'));
  await world.wait(250);
  assert.equal(world.open, 'c d e');
  for (const id of ['c', 'd', 'e']) await world.answer(id, job(id));
  await world.wait(250);
  assert.equal(world.open, 'b e f');
});

test('the list is looked at now and then', async () => {
  const world = await World.following(job('a', 'completed'));
  assert.equal(world.open, '');
  await world.wait(9_999);
  assert.equal(world.open, '');
  await world.wait(1);
  await world.answer('list', { data: [job('b'), job('a', 'completed')], has_more: false });
  assert.equal(world.open, 'b');
});

test('a server that does not answer is asked ever more seldom, and about the list alone', async () => {
  const world = await World.following(job('b'), job('a'));
  await world.fail('a');
  assert.equal(world.open, 'b list');
  await world.fail('list');
  await world.fail('b');
  for (const pause of [500, 1000, 2000]) {
    await world.wait(pause - 1);
    assert.equal(world.open, '', `before ${pause} ms`);
    await world.wait(1);
    assert.equal(world.open, 'list', `after ${pause} ms`);
    await world.fail('list');
  }
  assert.deepEqual(world.said, Array(4).fill('no answer'));
  await world.wait(4000);
  await world.answer('list', { data: [job('b'), job('a')], has_more: false });
  assert.equal(world.open, 'a b');
});

test('a job alone about which there is no answer is left alone for ever longer', async () => {
  const world = await World.following(job('a'));
  for (const pause of [500, 1000, 2000]) {
    await world.fail('a');
    await world.answer('list', { data: [job('a')], has_more: false });
    await world.wait(pause - 1);
    assert.equal(world.open, '', `before ${pause} ms`);
    await world.wait(1);
    assert.equal(world.open, 'a', `after ${pause} ms`);
  }
  assert.deepEqual(world.said, []);
});

test('a job that is gone is taken out', async () => {
  const world = await World.following(job('b'), job('a'));
  await world.fail('a', { status: 404 });
  await world.wait(250);
  assert.deepEqual([world.list.jobs.length, world.open], [1, 'b']);
});

test('nothing is asked while the list is not seen', async () => {
  const world = await World.following(job('a'));
  world.follower.stop();
  await settle();
  assert.equal(world.open, '');
  await world.wait(60_000);
  assert.equal(world.open, '');
  world.follower.start();
  assert.equal(world.open, 'list');
  world.follower.stop();
  world.follower.start();
  assert.equal(world.open, 'list');
  await world.answer('list', { data: [job('a')], has_more: false });
  assert.equal(world.open, 'a');
  assert.deepEqual(world.said, []);
});

test('a listener that stops it in the face of a failure is obeyed', async () => {
  const world = new World();
  world.follower.hooks.failed = () => world.follower.stop();
  world.follower.start();
  await world.fail('list', { status: 401 });
  await world.wait(60_000);
  assert.equal(world.open, '');
});

// Tests of the list of servers that the page shows at a router.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { fleetWords, allGpus, serverFacts, serverName, serverState } from '../servers.js';

const report = { name: 'own', ready: true, draining: false, places: 4, sessions: 1, waiting: 0, gpus: { total: 2, ready: 1 } };

test('a server is as its probes and its report say', () => {
  const check = (server, expected) => assert.equal(serverState(server), expected);
  check({ status: 'healthy', report }, 'ready');
  check({ status: 'healthy', report: null }, 'ready');
  check({ status: 'healthy', report: { ...report, ready: false } }, 'loading');
  check({ status: 'healthy', report: { ...report, draining: true } }, 'draining');
  check({ status: 'unhealthy', report }, 'exited');
  check({ status: 'unknown', report: null }, 'connecting');
  check({ status: 'healthy', link: 'plain', report: null }, 'ready');
  check({ status: 'healthy', link: 'down', report: null }, 'exited');
});

test('a server is called by its name, or by its address', () => {
  assert.equal(serverName({ name: 'a', url: 'http://h:1', report }), 'a');
  assert.equal(serverName({ name: null, url: 'http://h:1', report }), 'own');
  assert.equal(serverName({ name: null, url: 'https://h:1', report: null }), 'h:1');
});

test('a server that reports nothing has only its sessions of this router', () => {
  assert.deepEqual(serverFacts({ sessions: 3, report: null }), [['sessions', 3]]);
  const [sessions, gpus] = serverFacts({ sessions: 3, report });
  assert.deepEqual([sessions, gpus], [['sessions', '1 of 4'], ['GPUs ready', '1 of 2']]);
});

test('the servers are counted, and who waits', () => {
  const replicas = [{ status: 'healthy' }, { status: 'unhealthy' }];
  assert.equal(fleetWords({ replicas, waiting: 0 }).long, '1 of 2 servers healthy, nobody waiting');
  assert.equal(fleetWords({ replicas, waiting: 2, draining: true }).long, '1 of 2 servers healthy, 2 sessions waiting. The router is shutting down');
  assert.equal(fleetWords({ replicas, waiting: 0 }).short, '1 of 2 servers up');
  const cutOff = replicas.map((replica) => ({ ...replica, link: 'down' }));
  assert.equal(fleetWords({ replicas: cutOff, waiting: 0 }).short, '0 of 2 servers up');
  assert.equal(fleetWords({ replicas: [], waiting: 0 }).long, 'No server was found yet.');
});

test('a session may move among the GPUs of its server', () => {
  assert.equal(allGpus({ replicas: [{ report: null }, { report }, {}, { report }] }), 4);
  assert.equal(allGpus({ replicas: [] }), 0);
});

// The list of servers from the `GET /status` of a router.

import { $, facts, make, mark, say } from './dom.js';
import { phrase, plural } from './format.js';

const SERVER_WORDS = {
  ready: 'Ready', loading: 'Starting', draining: 'Draining', exited: 'Does not answer', connecting: 'Not asked yet',
};

/**
 * Returns the state of a server, in the words of a GPU's state. One whose link is down gets no session, whatever its probes
 * have said last.
 */
export function serverState({ status, link, report }) {
  if (status === 'unhealthy' || link === 'down') return 'exited';
  if (status !== 'healthy') return 'connecting';
  if (!report) return 'ready';
  if (report.draining) return 'draining';
  return report.ready ? 'ready' : 'loading';
}

/** Returns what a server is called: its name, or its address. */
export const serverName = ({ name, report, url }) => name ?? report?.name ?? String(url ?? '').replace(/^https?:\/\//, '');

/** Returns a server's numbers as pairs of a name and a value. A server without a control link reports nothing itself. */
export function serverFacts({ sessions, report }) {
  if (!report) return [['sessions', sessions ?? 0]];
  const { gpus = {} } = report;
  return [
    ['sessions', `${report.sessions ?? 0} of ${report.places ?? 0}`], ['GPUs ready', `${gpus.ready ?? 0} of ${gpus.total ?? 0}`],
    ['waiting', report.waiting || ''], ['zone', report.zone],
  ];
}

/** Returns the texts over all servers: the long one of the board and the short one of the header. */
export function fleetWords({ replicas, waiting, draining }) {
  const healthy = replicas.filter(({ status, link }) => status === 'healthy' && link !== 'down').length;
  const servers = `${healthy} of ${plural(replicas.length, 'server')}`;
  const queue = waiting ? `${plural(waiting, 'session')} waiting` : 'nobody waiting';
  const ending = draining ? '. The router is shutting down' : '';
  return { long: replicas.length ? `${servers} healthy, ${queue}${ending}` : 'No server was found yet.', short: `${servers} up` };
}

/** Returns how many GPUs the servers have that have told. */
export const allGpus = ({ replicas }) => replicas.reduce((sum, { report }) => sum + (report?.gpus?.total ?? 0), 0);

/** Shows the servers of a router. */
export function showServers(status) {
  say($('board-title'), 'Servers');
  say($('gpu-brief'), fleetWords(status).short);
  const list = $('gpus');
  status.replicas.forEach((server, i) => {
    const card = list.children[i] ?? list.appendChild(newCard());
    const dot = $('gpu-dots').children[i] ?? $('gpu-dots').appendChild(make('i'));
    const state = serverState(server);
    const name = serverName(server);
    for (const node of [card, dot]) mark(node, { state });
    mark(card, { testid: `server-${name}` });
    const [top, address, line] = card.children;
    say(top.firstChild, name);
    say(top.lastChild, SERVER_WORDS[state] ?? phrase(state));
    say(address, server.url ?? '');
    facts(line, serverFacts(server));
  });
  for (const node of [list, $('gpu-dots')]) while (node.children.length > status.replicas.length) node.lastChild.remove();
}

function newCard() {
  const card = make('li', 'gpu server');
  const top = make('div', 'gpu-top');
  top.append(make('b'), make('span'));
  card.append(top, make('p', 'model'), make('div', 'facts-line'));
  return card;
}

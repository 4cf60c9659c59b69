// The list of GPUs and language models from `GET /status`, with the buttons of an operator. A router has a list of servers instead.

import { operateGpu, reloadSystemPrompts, serverStatus } from './api.js';
import { $, facts, make, mark, say, set } from './dom.js';
import { gib, phrase, plural, seconds, sentence, span } from './format.js';
import { fleetWords, allGpus, showServers } from './servers.js';

/** The status code of an answer where operators have an address of their own. */
const NOT_FOUND = 404;
const POLL_MS = 1000;

const GPU_WORDS = {
  spawning: 'Starting', connecting: 'Connecting', loading: 'Loading the model', warming_up: 'Warming up', ready: 'Ready',
  busy: 'Generating', draining: 'Draining', drained: 'Drained', exited: 'Not running', backing_off: 'Restarting soon', quarantined: 'Quarantined',
};

const EXIT_WORDS = { asked: 'stopped on request', crashed: 'crashed', stuck: 'hung', boot: 'did not start', bad_link: 'spoke nonsense', shortage: 'no room on the host' };

const OPERATIONS = {
  drain: { name: 'Drain', question: 'Take it away? Each of its sessions moves at the end of its segment, or waits.' },
  restart: { name: 'Restart', question: 'Start its worker afresh? Its sessions move first, or wait.' },
};

const MODEL_WORDS = { ok: 'answers', resting: 'fails and is left alone', trying: 'is tried again', waiting: 'has too much to do' };

/** Returns the state of a GPU's worker. Older servers describe it with other fields. */
export function gpuState(gpu) {
  const given = typeof gpu.state === 'object' && gpu.state ? gpu.state.state ?? Object.keys(gpu.state)[0] : gpu.state;
  if (given) return String(given).replace(/([a-z])([A-Z])/g, '$1_$2').toLowerCase();
  if (gpu.process_alive === false) return 'exited';
  return gpu.ready ? (gpu.available === false ? 'busy' : 'ready') : 'loading';
}

/** Describes how a worker's last process ended. */
export function exitWords(last) {
  if (typeof last !== 'object') return phrase(last);
  const what = EXIT_WORDS[last.kind] ?? phrase(last.kind ?? '');
  const after = last.uptime_seconds == null ? '' : `after ${span(last.uptime_seconds)}`;
  return [[what, after].filter(Boolean).join(' '), last.reason].filter(Boolean).join(': ');
}

/** Says how fast segments are generated, by how fast they play. */
export function paceWords(factor) {
  if (typeof factor !== 'number' || !(factor > 0)) return '';
  const speed = 1 / factor;
  return `${speed.toFixed(speed < 10 ? 2 : 0)}× real time${factor > 1 ? ', too slow' : ''}`;
}

/** Polls `GET /status` while the page is visible. Every field of the answer may be missing. */
export class Gpus {
  /**
   * @param {(title: string, text: string, soft: boolean) => void} report
   * @param {() => void} counted  is called when the number of GPUs has changed
   * @param {(hasEnhancer: boolean) => void} enhancerTold  is called when a server, and not a router, tells whether it enhances prompts
   */
  constructor(report, counted, enhancerTold) {
    this.report = report;
    this.counted = counted;
    this.enhancerTold = enhancerTold;
    this.cards = new Map();
    $('models-reload').onclick = () => this.reload();
    document.addEventListener('visibilitychange', () => { if (!document.hidden) this.poll(); });
    this.poll();
  }

  /** The number of GPUs among which a session may move: those of the server, or of all servers of a router. */
  get count() { return this.all ?? this.cards.size; }

  async poll() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    try {
      const status = await this.ask();
      if (status) this.show(status);
    } finally {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.poll(), POLL_MS);
    }
  }

  /** Returns the server's status, or `null` after it has shown why there is none. */
  async ask() {
    try {
      return await serverStatus();
    } catch ({ status }) {
      if (status === NOT_FOUND) {
        this.brief('The GPUs are shown to operators, at an address of their own.', false);
        say($('gpu-brief'), 'for operators');
        return null;
      }
      this.brief(`The server does not answer${status ? ` (status ${status})` : ''}. Trying again every second.`, true);
      say($('gpu-brief'), 'no answer');
      return null;
    }
  }

  brief(text, bad) {
    say($('board-brief'), text);
    mark($('board-brief'), { bad });
    mark($('gpus'), { stale: bad });
    mark($('gpu-dots'), { stale: bad });
  }

  show(status) {
    if (status.replicas) {
      this.brief(fleetWords(status).long, false);
      showServers(status);
      const before = this.count;
      this.all = allGpus(status);
      if (this.count !== before) this.counted();
      return;
    }
    const gpus = Object.entries(status.gpu_status ?? {}).sort(([a], [b]) => a.localeCompare(b, undefined, { numeric: true }));
    const total = status.total_gpus ?? gpus.length;
    const waiting = status.queue_size ? `, ${plural(status.queue_size, 'session')} waiting` : ', nobody waiting';
    const drained = gpus.filter(([, gpu]) => gpuState(gpu) === 'drained').length;
    const away = drained ? `, ${drained} drained` : '';
    const free = `${status.available_gpus ?? 0} of ${total}`;
    const ending = status.draining ? '. The server is shutting down' : '';
    this.brief(total ? `${free} free${away}${waiting}${ending}` : 'This server has no GPU workers.', false);
    say($('gpu-brief'), total ? `${free} GPUs free` : 'no GPUs');
    set($('board-synthetic'), { hidden: !gpus.some(([, gpu]) => gpu.current_model_id === 'synthetic') });
    const before = this.count;
    for (const [id, card] of this.cards) {
      if (status.gpu_status?.[id]) continue;
      card.root.remove();
      this.cards.delete(id);
    }
    gpus.forEach(([id, gpu], i) => this.card(id, gpu, i));
    while ($('gpu-dots').children.length > gpus.length) $('gpu-dots').lastChild.remove();
    if (this.count !== before) this.counted();
    this.models(status.prompt);
    this.enhancerTold(Boolean(status.prompt));
  }

  models(prompt) {
    set($('models'), { hidden: !prompt });
    const words = ({ provider, model, state, last_failure: last }) => {
      const why = state !== 'ok' && last ? ` (${last.reason})` : '';
      return `${phrase(provider)} ${model} ${MODEL_WORDS[state] ?? phrase(state)}${why}`;
    };
    say($('models-text'), (prompt?.providers ?? []).map(words).join('; '));
  }

  async reload() {
    say($('models-note'), 'Reading…');
    try {
      const body = await reloadSystemPrompts();
      const files = Object.values(body).filter((origin) => origin === 'file').length;
      say($('models-note'), files ? `Reloaded, ${files} of 3 from files.` : 'Reloaded, all are the built-in ones.');
    } catch (error) {
      say($('models-note'), '');
      this.report('The system prompts were not reloaded.', sentence(error.message), true);
    }
  }

  make(id) {
    const root = make('li', 'gpu');
    root.dataset.testid = `gpu-${id}`;
    const top = make('div', 'gpu-top');
    const word = make('span');
    top.append(make('b', '', `GPU ${id}`), word);
    const model = make('p', 'model');
    const meter = make('div', 'meter');
    meter.append(make('i'));
    const line = make('div', 'facts-line');
    const last = make('p', 'last');
    const operations = make('div', 'orders');
    root.append(top, model, meter, line, last, operations);
    $('gpus').append(root);
    const card = { root, word, model, meter, line, last, operations };
    this.cards.set(id, card);
    return card;
  }

  card(id, gpu, i) {
    const card = this.cards.get(id) ?? this.make(id);
    const state = gpuState(gpu);
    const dot = $('gpu-dots').children[i] ?? $('gpu-dots').appendChild(make('i'));
    for (const node of [card.root, dot]) mark(node, { state });
    const model = gpu.current_model_id === 'synthetic' ? 'synthetic engine' : gpu.current_model_id;
    say(card.model, [model, gpu.device?.name].filter(Boolean).join(' on ') || 'no model');
    const progress = state === 'loading' && typeof gpu.load_progress?.fraction === 'number' ? gpu.load_progress : null;
    set(card.meter, { hidden: !progress });
    card.meter.firstChild.style.setProperty('--v', progress?.fraction ?? 0);
    const percent = progress && `${phrase(progress.what || 'loading')} ${Math.round(progress.fraction * 100)}%`;
    say(card.word, percent ?? GPU_WORDS[state] ?? phrase(state));
    const { load_ms: load, first_segment_ms: first, second_segment_ms: second } = gpu.warmup_timings ?? {};
    const loras = Object.entries(gpu.adapters ?? {}).filter(([, adapter]) => adapter.state === 'loaded');
    const loraBytes = loras.reduce((sum, [, adapter]) => sum + (adapter.bytes ?? 0), 0);
    facts(card.line, [
      ['sessions', gpu.client_count ?? 0], ['segments', gpu.segments_finished], ['pace', paceWords(gpu.real_time_factor)],
      ['adapters', loras.length ? `${loras.length} (${gib(loraBytes)})` : ''], ['restarts', gpu.restarts],
      ['GPU memory', gpu.device?.memory_bytes ? gib(gpu.device.memory_bytes) : ''],
      ['process', gpu.resident_bytes ? gib(gpu.resident_bytes) : ''], ['loaded in', seconds(load)],
      ['warmed up in', first == null ? '' : seconds(first + (second ?? 0))],
      ['pid', gpu.process_alive === false ? '' : gpu.pid], ['worker', gpu.worker_id],
    ]);
    const last = [];
    const exit = gpu.last_exit?.reason ?? gpu.last_exit?.kind;
    if (gpu.warmup_error && gpu.warmup_error !== exit) last.push(`Warm-up failed: ${gpu.warmup_error}.`);
    if (gpu.last_exit) last.push(`Last exit: ${exitWords(gpu.last_exit)}.`);
    if (state === 'quarantined') {
      last.push(gpu.last_exit?.permanent ? 'It is left alone until an operator restarts it.'
        : 'It failed too often and is left alone, unless no other is left.');
    }
    for (const [name, adapter] of Object.entries(gpu.adapters ?? {})) {
      if (adapter.state === 'failed') last.push(`Adapter ${name} is not loaded: ${adapter.error}.`);
    }
    if (state === 'drained') last.push('An operator has taken it away.');
    say(card.last, last.join(' '));
    set(card.last, { hidden: !last.length });
    this.offer(id, card, ['draining', 'drained'].includes(state) ? ['restart'] : ['drain', 'restart']);
  }

  /** Shows the buttons of the operations that the GPU's state allows. */
  offer(id, card, names) {
    const key = names.join();
    if (card.offered === key || card.asking) return;
    card.offered = key;
    const button = (name) => this.button(name, OPERATIONS[name].name, `GPU ${id}`, () => this.confirm(id, card, name, names));
    card.operations.replaceChildren(...names.map(button));
  }

  button(name, text, of, act) {
    const button = make('button', 'btn small quiet', text);
    button.type = 'button';
    button.dataset.order = name;
    button.setAttribute('aria-label', `${text} ${of}`);
    button.onclick = act;
    return button;
  }

  /** Asks for confirmation, since the operation affects the sessions of all users. */
  confirm(id, card, name, names) {
    card.asking = true;
    const over = () => {
      card.asking = false;
      card.offered = null;
      this.poll();
    };
    const yes = this.button('confirm', OPERATIONS[name].name, `GPU ${id}`, () => this.operate(id, name).finally(over));
    yes.classList.remove('quiet');
    const no = this.button('keep', 'Keep it', `GPU ${id}`, () => {
      over();
      this.offer(id, card, names);
    });
    card.operations.replaceChildren(make('p', '', OPERATIONS[name].question), yes, no);
    no.focus();
  }

  async operate(id, name) {
    try {
      await operateGpu(id, name);
    } catch (error) {
      this.report(`GPU ${id} did not get the order.`, sentence(error.message), true);
    }
  }
}

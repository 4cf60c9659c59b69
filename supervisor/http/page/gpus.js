// The board of GPUs, from `GET /status`.

import { $, facts, gib, make, phrase, plural, say, seconds, sentence, span } from './dom.js';

const GPU_WORDS = {
  spawning: 'Starting', connecting: 'Connecting', loading: 'Loading the model', warming_up: 'Warming up', ready: 'Ready',
  busy: 'Generating', draining: 'Draining', drained: 'Drained', exited: 'Not running', backing_off: 'Restarting soon', quarantined: 'Quarantined',
};

const EXIT_WORDS = { asked: 'stopped on request', crashed: 'crashed', stuck: 'hung', boot: 'did not start', bad_link: 'spoke nonsense' };

const ORDERS = {
  drain: { name: 'Drain', question: 'Take it away? Each of its sessions moves at the end of its segment, or waits.' },
  restart: { name: 'Restart', question: 'Start its worker afresh? Its sessions move first, or wait.' },
};

const MODEL_WORDS = { ok: 'answers', resting: 'fails and is left alone', trying: 'is tried again', waiting: 'has too much to do' };

/** Polls `GET /status` while the page is seen. Every field may be missing. */
export class Gpus {
  constructor(report) {
    this.report = report;
    this.cards = new Map();
    $('models-reload').onclick = () => this.reload();
    document.addEventListener('visibilitychange', () => { if (!document.hidden) this.poll(); });
    this.poll();
  }

  async poll() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    try {
      const answer = await fetch('/status', { cache: 'no-store', signal: AbortSignal.timeout(4000) });
      if (!answer.ok) throw new Error(`${answer.status}`);
      this.show(await answer.json());
    } catch (error) {
      const status = /^\d+$/.test(error.message) ? ` (status ${error.message})` : '';
      this.brief(`The server does not answer${status}. Trying again every second.`, true);
      say($('gpu-brief'), 'no answer');
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.poll(), 1000);
  }

  brief(text, bad) {
    say($('board-brief'), text);
    $('board-brief').dataset.bad = $('gpus').dataset.stale = $('gpu-dots').dataset.stale = bad;
  }

  show(status) {
    const gpus = Object.entries(status.gpu_status ?? {}).sort(([a], [b]) => a.localeCompare(b, undefined, { numeric: true }));
    const total = status.total_gpus ?? gpus.length;
    const waiting = status.queue_size ? `, ${plural(status.queue_size, 'session')} waiting` : ', nobody waiting';
    const drained = gpus.filter(([, gpu]) => this.state(gpu) === 'drained').length;
    const away = drained ? `, ${drained} drained` : '';
    this.brief(total ? `${status.available_gpus ?? 0} of ${total} free${away}${waiting}${status.draining ? '. The server is shutting down' : ''}` : 'This server has no GPU workers.', false);
    say($('gpu-brief'), total ? `${status.available_gpus ?? 0} of ${total} GPUs free` : 'no GPUs');
    $('board-synthetic').hidden = !gpus.some(([, gpu]) => gpu.current_model_id === 'synthetic');
    for (const [id, card] of this.cards) {
      if (status.gpu_status?.[id]) continue;
      card.root.remove();
      this.cards.delete(id);
    }
    gpus.forEach(([id, gpu], i) => this.card(id, gpu, i));
    while ($('gpu-dots').children.length > gpus.length) $('gpu-dots').lastChild.remove();
    this.models(status.prompt);
  }

  models(prompt) {
    $('models').hidden = !prompt;
    const words = ({ provider, model, state, last_failure: last }) => {
      const why = state !== 'ok' && last ? ` (${last.reason})` : '';
      return `${phrase(provider)} ${model} ${MODEL_WORDS[state] ?? phrase(state)}${why}`;
    };
    say($('models-text'), (prompt?.providers ?? []).map(words).join('; '));
  }

  async reload() {
    say($('models-note'), 'Reading…');
    try {
      const answer = await fetch('/v1/prompts/reload', { method: 'POST' });
      const body = await answer.json();
      if (!answer.ok) throw new Error(body.error.message);
      const files = Object.values(body).filter((origin) => origin === 'file').length;
      say($('models-note'), files ? `Reloaded, ${files} of 3 from files.` : 'Reloaded, all are the built-in ones.');
    } catch (error) {
      say($('models-note'), '');
      this.report('The system prompts were not reloaded.', sentence(error.message));
    }
  }

  state(gpu) {
    const given = typeof gpu.state === 'object' && gpu.state ? gpu.state.state ?? Object.keys(gpu.state)[0] : gpu.state;
    if (given) return String(given).replace(/([a-z])([A-Z])/g, '$1_$2').toLowerCase();
    if (gpu.process_alive === false) return 'exited';
    return gpu.ready ? (gpu.available === false ? 'busy' : 'ready') : 'loading';
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
    const orders = make('div', 'orders');
    root.append(top, model, meter, line, last, orders);
    $('gpus').append(root);
    const card = { root, word, model, meter, line, last, orders };
    this.cards.set(id, card);
    return card;
  }

  card(id, gpu, i) {
    const card = this.cards.get(id) ?? this.make(id);
    const state = this.state(gpu);
    const dot = $('gpu-dots').children[i] ?? $('gpu-dots').appendChild(make('i'));
    card.root.dataset.state = dot.dataset.state = state;
    say(card.word, GPU_WORDS[state] ?? phrase(state));
    const model = gpu.current_model_id === 'synthetic' ? 'synthetic engine' : gpu.current_model_id;
    say(card.model, [model, gpu.device?.name].filter(Boolean).join(' on ') || 'no model');
    const progress = state === 'loading' && typeof gpu.load_progress?.fraction === 'number' ? gpu.load_progress : null;
    card.meter.hidden = !progress;
    card.meter.firstChild.style.setProperty('--v', progress?.fraction ?? 0);
    if (progress) say(card.word, `${phrase(progress.what || 'loading')} ${Math.round(progress.fraction * 100)}%`);
    const { load_ms: load, first_segment_ms: first, second_segment_ms: second } = gpu.warmup_timings ?? {};
    facts(card.line, [
      ['sessions', gpu.client_count ?? 0], ['segments', gpu.segments_finished], ['restarts', gpu.restarts],
      ['GPU memory', gpu.device?.memory_bytes ? gib(gpu.device.memory_bytes) : ''],
      ['process', gpu.resident_bytes ? gib(gpu.resident_bytes) : ''], ['loaded in', seconds(load)],
      ['warmed up in', first == null ? '' : seconds(first + (second ?? 0))],
      ['pid', gpu.process_alive === false ? '' : gpu.pid], ['worker', gpu.worker_id],
    ]);
    const last = [];
    const exit = gpu.last_exit?.reason ?? gpu.last_exit?.kind;
    if (gpu.warmup_error && gpu.warmup_error !== exit) last.push(`Warm-up failed: ${gpu.warmup_error}.`);
    if (gpu.last_exit) last.push(`Last exit: ${this.exit(gpu.last_exit)}.`);
    if (state === 'quarantined') {
      last.push(gpu.last_exit?.permanent ? 'It is left alone until an operator restarts it.'
        : 'It failed too often and is left alone, unless no other is left.');
    }
    if (state === 'drained') last.push('An operator has taken it away.');
    say(card.last, last.join(' '));
    card.last.hidden = !last.length;
    this.offer(id, card, ['draining', 'drained'].includes(state) ? ['restart'] : ['drain', 'restart']);
  }

  /** What an operator can do with a GPU. */
  offer(id, card, names) {
    const key = names.join();
    if (card.offered === key || card.asking) return;
    card.offered = key;
    card.orders.replaceChildren(...names.map((name) => this.button(name, ORDERS[name].name, `GPU ${id}`, () => this.ask(id, card, name, names))));
  }

  button(name, text, of, act) {
    const button = make('button', 'btn small quiet', text);
    button.type = 'button';
    button.dataset.order = name;
    button.setAttribute('aria-label', `${text} ${of}`);
    button.onclick = act;
    return button;
  }

  /** Orders concern everybody's sessions, so that they are confirmed. */
  ask(id, card, name, names) {
    card.asking = true;
    const over = () => {
      card.asking = false;
      card.offered = null;
      this.poll();
    };
    const yes = this.button('confirm', ORDERS[name].name, `GPU ${id}`, () => this.order(id, card, name).finally(over));
    yes.classList.remove('quiet');
    const no = this.button('keep', 'Keep it', `GPU ${id}`, () => {
      over();
      this.offer(id, card, names);
    });
    card.orders.replaceChildren(make('p', '', ORDERS[name].question), yes, no);
    no.focus();
  }

  async order(id, card, name) {
    try {
      const answer = await fetch(`/v1/workers/${id}/${name}`, { method: 'POST' });
      if (!answer.ok) throw new Error((await answer.json()).error.message);
    } catch (error) {
      this.report(`GPU ${id} did not get the order.`, sentence(error.message));
    }
  }

  exit(last) {
    if (typeof last !== 'object') return phrase(last);
    const what = EXIT_WORDS[last.kind] ?? phrase(last.kind ?? '');
    const after = last.uptime_seconds == null ? '' : `after ${span(last.uptime_seconds)}`;
    return [[what, after].filter(Boolean).join(' '), last.reason].filter(Boolean).join(': ');
  }
}

// The list of requests that wait: each can be moved, changed and removed.

import { make } from './dom.js';

export class WaitingList {
  /** @param {HTMLElement} root @param {(event: import('./session.js').Event) => void} dispatch */
  constructor(root, dispatch) {
    this.root = root;
    this.dispatch = dispatch;
    this.shown = '[]';
  }

  /** @param {import('./state.js').Request[]} waiting */
  render(waiting) {
    const shown = waiting.map((request) => [request.id, request.edit ?? request.written ?? request.prompt, request.prompt]);
    const key = JSON.stringify(shown);
    if (key === this.shown) return;
    this.shown = key;
    const focused = document.activeElement?.dataset?.action && document.activeElement.closest('li')?.dataset.request;
    const action = document.activeElement?.dataset?.action;
    this.root.replaceChildren(...shown.map((request, i) => this.item(request, i, shown.length)));
    if (focused) this.root.querySelector(`[data-request="${focused}"] [data-action="${action}"]`)?.focus();
  }

  item([id, text, prompt], i, count) {
    const item = make('li');
    item.dataset.testid = `waiting-${i}`;
    item.dataset.state = 'queued';
    item.dataset.request = id;
    const button = (action, label, run, disabled = false) => {
      const made = make('button', 'btn small quiet', label);
      made.type = 'button';
      made.dataset.action = action;
      made.disabled = disabled;
      made.setAttribute('aria-label', `${label}: ${prompt}`);
      made.onclick = run;
      return made;
    };
    const words = make('span', 'words', text);
    const actions = make('span', 'actions');
    actions.append(
      button('up', 'Sooner', () => this.dispatch({ type: 'request_move', id, by: -1 }), i === 0),
      button('down', 'Later', () => this.dispatch({ type: 'request_move', id, by: 1 }), i === count - 1),
      button('edit', 'Edit', () => this.edit(item, words, id, prompt)),
      button('remove', 'Remove', () => this.dispatch({ type: 'request_withdraw', id })),
    );
    item.append(make('b', '', `+${i + 1}`), words, actions);
    return item;
  }

  /** Replaces the words of a waiting prompt by a field. Enter takes what it holds, Escape leaves the prompt as it was. */
  edit(item, words, id, prompt) {
    const field = make('input', 'words');
    field.type = 'text';
    field.value = prompt;
    field.setAttribute('aria-label', `New text for the prompt: ${prompt}`);
    let over = false;
    const end = (take) => {
      if (over) return;
      over = true;
      field.replaceWith(words);
      if (take) this.dispatch({ type: 'request_edit', id, prompt: field.value.trim() });
      item.querySelector('[data-action="edit"]')?.focus();
    };
    field.onkeydown = (event) => {
      if (event.isComposing || !['Enter', 'Escape'].includes(event.key)) return;
      event.preventDefault();
      end(event.key === 'Enter');
    };
    field.onblur = () => end(true);
    words.replaceWith(field);
    field.focus();
  }
}

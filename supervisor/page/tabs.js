// The tabs of the page. The keys are those of the ARIA Authoring Practices: the arrows, Home and End.

import { mark, set } from './dom.js';

/** Returns which tab a key goes to; null for another key. @param {string} key @param {number} at @param {number} count */
export function tabAfter(key, at, count) {
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: count - 1 }[key];
  return to === undefined ? null : (to + count) % count;
}

/** Shows one of several panels. Each tab controls the panel whose id it names. */
export class Tabs {
  /**
   * @param {HTMLElement} root  the element with the role `tablist`, which is not seen until there is something to choose
   * @param {(panel: string) => void} changed  is called when the user has chosen another panel
   */
  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    this.tabs = [...root.children];
    this.tabs.forEach((tab) => { tab.onclick = () => this.choose(tab); });
    root.onkeydown = (event) => {
      const { seen } = this;
      const to = tabAfter(event.key, seen.indexOf(event.target), seen.length);
      if (to === null) return;
      event.preventDefault();
      this.choose(seen[to]);
      seen[to].focus();
    };
  }

  /** The tabs that the user may choose. */
  get seen() {
    return this.tabs.filter((tab) => !tab.hidden);
  }

  /** The id of the panel that is shown. */
  get panel() {
    return this.tabs.find((tab) => tab.getAttribute('aria-selected') === 'true').getAttribute('aria-controls');
  }

  /** Lets the user choose a panel besides the first one, or not. The first panel alone needs no tab. @param {string} id @param {boolean} isOffered */
  offer(id, isOffered) {
    const offered = this.tabs.find((tab) => tab.getAttribute('aria-controls') === id);
    set(offered, { hidden: !isOffered });
    const isChoice = this.seen.length > 1;
    mark(this.root, { on: isChoice });
    for (const tab of this.tabs) {
      const panel = panelOf(tab);
      if (isChoice && !tab.hidden) {
        panel.setAttribute('role', 'tabpanel');
        panel.setAttribute('aria-labelledby', tab.id);
      } else {
        panel.removeAttribute('role');
        panel.removeAttribute('aria-labelledby');
      }
    }
    if (!isOffered && this.panel === id) this.choose(this.tabs[0]);
  }

  choose(chosen) {
    if (chosen.getAttribute('aria-controls') === this.panel) return;
    for (const tab of this.tabs) {
      const isChosen = tab === chosen;
      tab.setAttribute('aria-selected', String(isChosen));
      set(tab, { tabIndex: isChosen ? 0 : -1 });
      set(panelOf(tab), { hidden: !isChosen });
    }
    this.changed(this.panel);
  }

  /** Shows a panel. @param {string} id */
  show(id) {
    this.choose(this.tabs.find((tab) => tab.getAttribute('aria-controls') === id));
  }
}

const panelOf = (tab) => document.getElementById(tab.getAttribute('aria-controls'));

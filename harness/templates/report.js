'use strict';
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($('data').textContent);
  const short = (v) => v === null ? '–' : v === 0 ? '0' : typeof v === 'number' ? v.toExponential(1).replace('+', '') : v;
  const make = (tag, text, parent, name) => {
    const e = document.createElement(tag);
    if (text !== undefined) e.textContent = text;
    if (name) e.className = name;
    if (parent) parent.append(e);
    return e;
  };

  // A link to what is folded away unfolds it.
  const reveal = () => {
    const target = $(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let e = target; e; e = e.parentElement) if (e.tagName === 'DETAILS') e.open = true;
    target.scrollIntoView();
  };
  addEventListener('hashchange', reveal);
  reveal();
  for (const row of document.querySelectorAll('[data-open]')) {
    row.addEventListener('click', (e) => {
      if (e.target.closest('a')) return;
      if (location.hash === '#' + row.dataset.open) reveal();
      else location.hash = row.dataset.open;
    });
  }
  for (const a of document.querySelectorAll('a[href^="#"]')) {
    a.addEventListener('click', () => { if (a.hash === location.hash) reveal(); });
  }

  // The command.
  const copy = $('copy');
  copy.hidden = false;
  copy.addEventListener('click', async () => {
    const command = $('command');
    try {
      await navigator.clipboard.writeText(command.textContent);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(command);
      const selection = getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      document.execCommand('copy');
    }
    copy.textContent = 'Copied';
    setTimeout(() => { copy.textContent = 'Copy'; }, 1500);
  });

  // The chart: a pointer or arrow keys choose a point, its figures stand below.
  const box = $('chart');
  const svg = box.querySelector('svg');
  const count = data.points.length;
  if (count > 0) {
    const left = Number(svg.dataset.left), step = Number(svg.dataset.step);
    const cursor = svg.querySelector('.cursor');
    const out = $('readout');
    let chosen = -1;
    const show = (i) => {
      i = Math.max(0, Math.min(count - 1, i));
      if (i === chosen) return;
      chosen = i;
      const point = data.points[i];
      // Where the chart is wider than the window, the point must be in sight.
      const scroll = box.parentElement;
      const middle = (left + (i + 0.5) * step) / svg.viewBox.baseVal.width * box.clientWidth;
      if (middle < scroll.scrollLeft + 60 || middle > scroll.scrollLeft + scroll.clientWidth - 20) {
        scroll.scrollLeft = middle - scroll.clientWidth / 2;
      }
      cursor.setAttribute('transform', `translate(${left + (i + 0.5) * step} 0)`);
      cursor.style.visibility = 'visible';
      out.hidden = false;
      out.replaceChildren();
      const title = make('p', undefined, out);
      const link = make('a', point.p, title);
      link.href = $('p-' + point.p) ? '#p-' + point.p : '#c-' + point.c;
      make('span', ` · checkpoint ${point.c}, tolerance ${point.t === 0 ? 'exact' : short(point.t)}`, title);
      const table = make('table', undefined, out);
      const head = make('tr', undefined, make('thead', undefined, table));
      const columns = data.by_oracle ? ['total', 'local', 'inherited'] : ['total'];
      for (const name of ['', ...columns]) make('th', name, head, name ? 'n' : '');
      const body = make('tbody', undefined, table);
      data.series.forEach((s, n) => {
        const row = make('tr', undefined, body);
        const name = make('th', s.name, row, 'key-s' + Math.min(n, 4));
        name.scope = 'row';
        for (const c of columns) make('td', short(s[c][i]), row, 'n');
      });
    };
    const at = (e) => {
      const frame = svg.getBoundingClientRect();
      const x = (e.clientX - frame.left) / frame.width * svg.viewBox.baseVal.width;
      show(Math.floor((x - left) / step));
    };
    svg.addEventListener('pointermove', at);
    svg.addEventListener('pointerdown', at);
    box.tabIndex = 0;
    box.setAttribute('role', 'group');
    box.setAttribute('aria-label', 'Errors along the data flow. Left and right arrow keys choose a point; Page Up and Page Down another layer.');
    const layer = (i) => data.points[i].p.split('.')[0] === 'h' ? data.points[i].p.split('.')[1] : '';
    const other = (d) => {
      let i = Math.max(chosen, 0);
      const from = layer(i);
      while (data.points[i + d] && layer(i) === from) i += d;
      return i;
    };
    box.addEventListener('keydown', (e) => {
      const to = { ArrowLeft: () => chosen - 1, ArrowRight: () => chosen + 1, Home: () => 0, End: () => count - 1,
        PageUp: () => other(-1), PageDown: () => other(1) }[e.key];
      if (e.key === 'Enter' && chosen >= 0) out.querySelector('a').click();
      if (!to) return;
      e.preventDefault();
      show(to());
    });
    const first = $('first');
    const start = first ? data.points.findIndex((p) => '#p-' + p.p === first.hash) : -1;
    show(start >= 0 ? start : 0);
  }

  // Heat maps: the figure under the pointer, or under a cell that arrow keys move.
  const CODES = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
  for (const figure of document.querySelectorAll('.heat')) {
    const [panels, rows, columns, across, height, width] = figure.dataset.shape.split(' ').map(Number);
    const low = Number(figure.dataset.low), high = Number(figure.dataset.high);
    const codes = figure.dataset.codes;
    const axes = figure.dataset.axes.split(' ');
    const tokens = JSON.parse(figure.dataset.tokens);
    const frame = figure.querySelector('.frame'), spot = figure.querySelector('.spot'), out = figure.querySelector('.at');
    const wide = across * (columns + 1) - 1, tall = Math.ceil(panels / across) * (rows + 1) - 1;
    const code = (cell) => CODES.indexOf(codes[2 * cell]) * 64 + CODES.indexOf(codes[2 * cell + 1]);
    const value = (cell) => {
      const q = code(cell);
      return q === 0 ? null : q === 1 ? 0 : q === 4095 ? Infinity : low * (high / low) ** ((q - 2) / 4092);
    };
    // The elements that a cell holds along an axis of `length` in `cells`.
    const range = (i, cells, length) => [Math.ceil(i * length / cells), Math.ceil((i + 1) * length / cells) - 1];
    const span = (name, [from, to]) => from >= to ? `${name} ${from}` : `${name}s ${from}–${to}`;
    const places = (panel, r, c) => {
      const down = range(r, rows, height), over = range(c, columns, width);
      if (axes.length === 1) {
        const from = down[0] * width + over[0], to = down[1] * width + over[1];
        return [span(axes[0], [from, to])];
      }
      const names = axes.slice(-2);
      const token = names[0] === 'token' && down[0] >= down[1] && tokens[down[0]] ? ' ' + tokens[down[0]] : '';
      const parts = [span(names[0], down) + token, span(names[1], over)];
      if (axes.length === 3) parts.unshift(`head ${panel}`);
      return parts;
    };
    let here = null;
    const show = (x, y) => {
      x = Math.max(0, Math.min(wide - 1, x));
      y = Math.max(0, Math.min(tall - 1, y));
      const c = x % (columns + 1), r = y % (rows + 1);
      const panel = Math.floor(y / (rows + 1)) * across + Math.floor(x / (columns + 1));
      if (c === columns || r === rows || panel >= panels) return false;
      here = [x, y];
      const v = value((panel * rows + r) * columns + c);
      const text = v === null ? 'masked' : v === Infinity ? 'not finite' : short(v);
      out.textContent = `${places(panel, r, c).join(', ')}: ${text}`;
      Object.assign(spot.style, { display: 'block', left: `${100 * x / wide}%`, top: `${100 * y / tall}%`,
        width: `max(7px, ${100 / wide}%)`, height: `max(7px, ${100 / tall}%)` });
      return true;
    };
    frame.addEventListener('pointermove', (e) => {
      const b = frame.getBoundingClientRect();
      show(Math.floor((e.clientX - b.left) / b.width * wide), Math.floor((e.clientY - b.top) / b.height * tall));
    });
    const worst = () => {
      let best = 0;
      for (let i = 1; i < codes.length / 2; i++) if (code(i) > code(best)) best = i;
      const panel = Math.floor(best / (rows * columns)), rest = best % (rows * columns);
      show(panel % across * (columns + 1) + rest % columns, Math.floor(panel / across) * (rows + 1) + Math.floor(rest / columns));
    };
    frame.addEventListener('keydown', (e) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
      if (e.key === 'Home') { e.preventDefault(); worst(); }
      if (!move) return;
      e.preventDefault();
      if (!here) return worst();
      // Over the gap between heads.
      const [x, y] = here;
      show(x + move[0], y + move[1]) || show(x + 2 * move[0], y + 2 * move[1]);
    });
    worst();
  }
})();

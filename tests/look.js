() => {
  // What is wrong with a page as it is shown: {} if nothing is. Read by test_site.py
  const main = document.querySelector('article');
  const found = {math: [], dollar: [], wide: [], pale: []};
  const seen = e => e.getClientRects().length > 0;

  for (const e of document.querySelectorAll('.math')) {
    const isSet = e.querySelector('.katex') && !e.querySelector('.katex-error');
    if (!isSet) found.math.push(e.textContent.slice(0, 40));
  }

  // Contrast as WCAG defines it
  const rgb = colour => (colour.match(/[\d.]+/g) || []).map(Number);
  const linear = v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4;
  const luminance = colour => {
    const [r, g, b] = rgb(colour).slice(0, 3).map(linear);
    return .2126*r + .7152*g + .0722*b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (rgb(colour)[3] !== 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const walk = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
  for (let n; n = walk.nextNode();) {
    const e = n.parentElement;
    if (!n.data.trim() || !seen(e) || e.closest('.katex, script, style')) continue;
    if (n.data.includes('$') && !e.closest('pre, code')) found.dollar.push(n.data.trim().slice(0, 60));
    const a = luminance(getComputedStyle(e).color), b = luminance(ground(e));
    const ratio = (Math.max(a, b) + .05)/(Math.min(a, b) + .05);
    if (ratio >= 4.5 || e.closest('.headerlink')) continue;
    found.pale.push(`${ratio.toFixed(1)} ${n.data.trim().slice(0, 40)}`);
  }

  // What stands out to the right, unless something around it scrolls
  const scrolls = e => {
    for (; e && e !== document.body; e = e.parentElement)
      if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX)) return true;
  };
  const outside = e => e.getBoundingClientRect().right > innerWidth + 1;
  for (const e of main.querySelectorAll('table, img, pre, .math.display, p, h1, h2, h3')) {
    if (seen(e) && outside(e) && !scrolls(e)) found.wide.push(e.outerHTML.slice(0, 80));
  }
  const width = document.documentElement.scrollWidth;
  if (width > innerWidth + 1) found.wide.push(`the page: ${width}`);
  for (const i of main.querySelectorAll('img')) {
    if (!i.complete || !i.naturalWidth) found.wide.push(`no picture: ${i.src}`);
    else if (outside(i)) found.wide.push(`figure: ${i.src}`);
  }

  const told = Object.entries(found).filter(([, v]) => v.length);
  return Object.fromEntries(told.map(([k, v]) => [k, [v.length, ...v.slice(0, 4)]]));
}

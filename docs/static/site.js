// A page read from a disk may not look into others: no excerpts in its search then.
if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
// The theme listens to the first sidebar button that it finds: not to the one in the bar that is not shown.
for (const el of document.querySelectorAll('#pst-header .sidebar-toggle')) el.remove();
for (const el of document.querySelectorAll('.math')) katex.render(el.textContent, el, {displayMode: el.tagName === 'DIV', throwOnError: true});
// A formula that scrolls can be scrolled by keyboard, as the theme arranges it for code and tables.
const reach = () => {
  for (const el of document.querySelectorAll('.math.display'))
    if (el.scrollWidth > el.clientWidth) el.tabIndex = 0; else el.removeAttribute('tabindex');
};
addEventListener('load', reach);
addEventListener('resize', reach);

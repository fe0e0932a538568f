// Mathematics is set by the script beside this one. A page read from a disk may not look into others: no excerpts in its search then.
if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
for (const el of document.querySelectorAll('.math')) katex.render(el.textContent, el, {displayMode: el.tagName === 'DIV', throwOnError: true});

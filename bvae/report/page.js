/* Makes the page of pytest-html work on a narrow screen, by keyboard and with a screen reader.
   This script starts before pytest-html's script draws the results. */
(() => {
  document.documentElement.lang = 'en';
  const viewport = document.createElement('meta');
  viewport.name = 'viewport';
  viewport.content = 'width=device-width, initial-scale=1';
  document.head.append(viewport);

  const row = document.getElementById('template_results-table__tbody')?.content;
  row?.querySelector('.media img')?.setAttribute('alt', 'attached picture');
  const expander = document.createElement('button');
  expander.type = 'button';
  expander.className = 'logexpander';
  expander.setAttribute('aria-label', 'expand or collapse the log');
  row?.querySelector('.logexpander')?.replaceWith(expander);

  /* Move the content of a cell into a button, because pytest-html makes only the cell clickable. */
  const makeButton = (cell, act) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'page-button';
    button.append(...cell.childNodes);
    button.addEventListener('click', (event) => { event.stopPropagation(); act(); });
    cell.append(button);
    return button;
  };

  let focused = null;  // The button that gets the focus back after a click, as pytest-html redraws the table.
  const completeHead = (cell) => {
    const name = `sort ${cell.dataset.columnType}`;
    const button = cell.querySelector('button') || makeButton(cell, () => { focused = name; cell.click(); });
    const order = ['asc', 'desc'].find((kind) => cell.classList.contains(kind));
    cell.setAttribute('aria-sort', order ? `${order}ending` : 'none');
    if (focused === name) button.focus();
  };
  const completeRow = (row) => {
    const cell = row.querySelector('.col-result');
    const button = makeButton(cell, () => { focused = row.dataset.id; cell.click(); });
    button.setAttribute('aria-expanded', String(!cell.classList.contains('collapsed')));
    if (focused === row.dataset.id) button.focus();
  };
  const completeLog = (log) => {
    log.tabIndex = 0;
    log.setAttribute('role', 'region');
    log.setAttribute('aria-label', `Log of ${log.closest('tbody').id}`);
  };
  const completeTable = () => {
    const all = (selector) => document.querySelectorAll(`#results-table ${selector}`);
    const hasLinks = all('.col-links__extra').length > 0;
    document.body.classList.toggle('page-no-links', !hasLinks);
    all('td.extra').forEach((cell) => { cell.colSpan = hasLinks ? 4 : 3; });
    all('.media.hidden').forEach((unused) => unused.remove());
    all('.sortable').forEach(completeHead);
    all('.collapsible').forEach(completeRow);
    all('.logwrapper').forEach(completeLog);
    focused = null;
  };

  document.addEventListener('DOMContentLoaded', () => {
    const main = document.createElement('main');
    main.append(...document.querySelectorAll('body > :not(footer)'));
    document.body.prepend(main);
    document.querySelectorAll('input.filter').forEach((input) => {
      const label = document.createElement('label');
      const name = input.nextElementSibling;
      input.before(label);
      label.append(input, ' ', name);
    });

    const header = document.getElementById('environment-header');
    const environment = document.getElementById('environment');
    environment.querySelectorAll('ul > ul').forEach((unclosed) => unclosed.remove());
    main.append(header, environment);  // The results come before the environment.
    const heading = header.querySelector('h2');
    const toggle = makeButton(heading, () => heading.click());
    header.addEventListener('click', () => {
      toggle.setAttribute('aria-expanded', String(!header.classList.contains('collapsed')));
    });
    heading.click();

    new MutationObserver(completeTable).observe(main, { childList: true });
    completeTable();
  });
})();

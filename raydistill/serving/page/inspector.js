'use strict';
const $ = id => document.getElementById(id);
const MARKS = {question: '', history: '<', added: '+'};
const FIRST_TERMS = 30;
const hidden = new Set();
let turns = new Map(), typing = 0;

const counted = (number, noun) => `${number} ${noun}${number === 1 ? '' : 's'}`;
function make(tag, style, text) {
  const node = document.createElement(tag);
  if (style) node.className = style;
  if (text !== undefined) node.textContent = text;
  return node;
}
async function call(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {method, body: body === undefined ? undefined : JSON.stringify(body)});
  } catch { throw new Error('the service does not answer; is it still running?'); }
  let said;
  try { said = await answer.json(); } catch { throw new Error(`the service answered ${answer.status}, and not in JSON`); }
  if (!answer.ok) throw new Error(said.error ? said.error.message : `the service answered ${answer.status}`);
  return said;
}
function complain(error) { $('problem').textContent = error.message; $('problem').hidden = false; }
function utterances() { return $('said').value.split('\n').map(line => line.trim()).filter(line => line); }

async function load_turns(like) {
  const said = await call('GET', `turns?set=${encodeURIComponent($('set').value)}&like=${encodeURIComponent(like)}`);
  turns = new Map(said.turns.map(turn => [turn.query_id, turn]));
  $('turns').replaceChildren(...said.turns.map(turn => {
    const option = make('option', '', `${turn.question} (turn ${turn.depth})`);
    option.value = turn.query_id;
    return option;
  }));
  return said.turns.length;
}
function picked() {
  const typed = $('turn').value.trim();
  if (!typed || turns.has(typed)) return typed;
  const low = typed.toLowerCase();
  const found = [...turns.values()].filter(turn => turn.question.toLowerCase().includes(low));
  if (found.length === 1) return found[0].query_id;
  return typed;
}
async function look(query_id) {
  $('problem').hidden = true;
  $('look').disabled = true;
  $('state').textContent = 'looking; the first time models are loaded';
  try {
    const k = Number($('k').value);
    const body = query_id ? {query_id, k} : {conversation: utterances(), k};
    show(await call('POST', 'inspect', body));
  } catch (error) { $('told').hidden = true; complain(error); }
  $('look').disabled = false;
  $('state').textContent = '';
}
function show(found) {
  const said = [...found.history.flat(), found.question];
  const kept = said.map(line => line.replace(/\s+/g, ' ').trim());
  $('said').value = kept.map(line => line || '…').join('\n');
  $('conversation').replaceChildren(...kept.map((line, place) => {
    const paragraph = make('p', place === said.length - 1 ? '' : 'before');
    paragraph.append(make('span', 'who', place % 2 ? 'system' : 'user'), line.length > 400 ? line.slice(0, 399) + '…' : line);
    return paragraph;
  }));
  const grades = Object.values(found.grades).filter(grade => grade > 0).length;
  if (found.query_id !== 'typed') {
    $('conversation').append(make('p', 'numbers', `${found.query_id}: ` + (grades ? counted(grades, 'relevant passage') : 'not judged')));
  }
  const students = found.views.filter(is_student), others = found.views.filter(view => !is_student(view));
  const order = [...students, ...others];
  $('choice').replaceChildren(...order.map(view => {
    const box = make('input');
    box.type = 'checkbox';
    box.checked = !hidden.has(view.name);
    box.addEventListener('change', () => {
      box.checked ? hidden.delete(view.name) : hidden.add(view.name);
      $('views').querySelectorAll('.view').forEach(card => { card.hidden = hidden.has(card.dataset.name); });
    });
    const label = make('label');
    label.append(box, view.name);
    return label;
  }));
  $('views').replaceChildren(...order.map(view => card(view, kept, grades > 0)));
  $('told').hidden = false;
}
function is_student(view) { return view.student; }
function card(view, said, judged) {
  const node = make('article', 'view' + (is_student(view) ? ' student' : ''));
  node.dataset.name = view.name;
  node.hidden = hidden.has(view.name);
  node.append(make('h2', '', view.name));
  let head = counted(view.terms.length, 'term');
  if (judged) head += view.first_relevant ? `, first relevant at ${view.first_relevant}` : `, nothing relevant in the top ${view.depth}`;
  node.append(make('p', 'head', head));
  if (view.note) node.append(make('p', 'bad', `no rewrite (${view.note}); the last utterance stands in`));
  node.append(make('p', 'text', view.text));
  const list = make('ul', 'terms');
  const largest = view.terms.length ? view.terms[0].weight : 1;
  for (const [place, each] of view.terms.entries()) {
    const term = make('li', 'term ' + each.origin, MARKS[each.origin] + each.term);
    term.title = `${each.term}: ${each.weight.toFixed(3)}`;
    term.style.backgroundSize = `${100 * each.weight / largest}% 2px`;
    term.append(make('small', '', each.weight.toFixed(2)));
    term.hidden = place >= FIRST_TERMS;
    list.append(term);
  }
  if (view.terms.length > FIRST_TERMS) list.append(more_terms(list, view.terms.length - FIRST_TERMS));
  node.append(view.terms.length ? list : make('p', 'soft', 'no term'));
  const passages = make('ol', 'passages');
  for (const each of view.found) passages.append(passage(each, view, said));
  node.append(view.found.length ? passages : make('p', 'soft', 'nothing found'));
  return node;
}
function more_terms(list, number) {
  const item = make('li'), button = make('button', 'small', counted(number, 'lighter term'));
  button.type = 'button';
  button.addEventListener('click', () => {
    list.querySelectorAll('.term').forEach(term => { term.hidden = false; });
    item.remove();
  });
  item.append(button);
  return item;
}
function passage(found, view, said) {
  const item = make('li');
  const row = make('div', 'row');
  row.append(make('span', 'soft', `${found.rank}`), make('span', 'id', found.passage_id), make('span', 'soft', found.score.toFixed(2)));
  if (found.grade !== null) row.append(make('span', found.grade > 0 ? 'good' : 'bad', found.grade > 0 ? `relevant ${found.grade}` : 'not relevant'));
  const text = make('p', 'snippet', found.text === null ? '(its text is not there)' : found.text);
  const matches = make('div');
  for (const [term, value] of found.matches) {
    const match = make('span', 'match', term + ' ');
    match.append(make('small', '', value.toFixed(2)));
    matches.append(match);
  }
  item.append(row, text, matches);
  if (found.text !== null && found.text.length > 160) {
    const more = make('button', 'small', 'whole text');
    more.type = 'button';
    more.addEventListener('click', () => { more.textContent = text.classList.toggle('open') ? 'less text' : 'whole text'; });
    item.append(more);
  }
  if (view.name === 'student') {
    const why = make('button', 'small', 'every matching term');
    why.type = 'button';
    why.addEventListener('click', async () => {
      why.disabled = true;
      try {
        item.append(explained(await call('POST', 'explain', {conversation: said, passage_id: found.passage_id})));
      } catch (error) { complain(error); why.disabled = false; }
    });
    item.append(why);
  }
  return item;
}
function explained(said) {
  const box = make('div', 'why'), table = make('table'), head = make('tr');
  for (const name of ['term', 'query weight', 'impact', 'product']) head.append(make('th', '', name));
  const top = make('thead'), body = make('tbody');
  top.append(head);
  for (const each of said.contributions) {
    const row = make('tr');
    row.append(make('th', '', each.term));
    for (const value of [each.query_weight, each.passage_impact, each.product]) row.append(make('td', '', value.toFixed(3)));
    body.append(row);
  }
  table.append(top, body);
  box.append(table, make('p', 'soft', `${said.contributions.length} of the query's ${said.query_terms} terms; score ${said.score.toFixed(3)}`));
  return box;
}
$('ask').addEventListener('submit', event => {
  event.preventDefault();
  look('');
});
$('said').addEventListener('keydown', event => { if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) look(''); });
$('turn').addEventListener('change', async () => {
  clearTimeout(typing);
  try { await load_turns($('turn').value.trim()); } catch (error) { complain(error); return; }
  const id = picked();
  if (id) look(id);
});
$('turn').addEventListener('input', () => {
  clearTimeout(typing);
  typing = setTimeout(() => { load_turns($('turn').value.trim()).catch(complain); }, 250);
});
$('set').addEventListener('change', () => { load_turns('').catch(complain); });
(async () => {
  try { $('pick').hidden = !await load_turns(''); } catch (error) { complain(error); }
  const wanted = new URLSearchParams(location.search).get('turn');
  if (wanted) { $('turn').value = wanted; look(wanted); }
})();

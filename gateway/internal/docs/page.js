'use strict';

// keyed ends the name of a parameter that is given as key=value.
const keyed = '.<key>';

const byId = (id) => document.getElementById(id);

function element(name, attributes, ...children) {
  const e = document.createElement(name);
  Object.assign(e, attributes);
  e.append(...children);
  return e;
}

// example makes a body from a schema: what a client may write, one level of nesting deep.
function example(spec, schema, depth) {
  if (schema.$ref) schema = spec.definitions[schema.$ref.split('/').pop()] || {};
  if (schema.enum) return schema.enum[0];
  if (schema.type === 'object' || schema.properties) {
    const out = {};
    if (depth > 2) return out;
    for (const [name, property] of Object.entries(schema.properties || {})) {
      if (!property.readOnly) out[name] = example(spec, property, depth + 1);
    }
    return out;
  }
  switch (schema.type) {
    case 'array': return [];
    case 'boolean': return false;
    case 'integer': case 'number': return 0;
    default: return '';
  }
}

function field(spec, p) {
  const label = element('label', { textContent: p.name + (p.required ? ' *' : '') });
  if (p.in === 'body') {
    const body = JSON.stringify(example(spec, p.schema, 0), null, 2);
    return [element('div', { className: 'wide note', textContent: 'Body: remove what you do not want to set.' }),
      element('textarea', { className: 'wide', name: 'body', value: body, spellcheck: false })];
  }
  const values = p.enum || (p.items && p.items.enum);
  let input;
  if (values || p.type === 'boolean') {
    input = element('select', { name: p.name }, ...['', ...(values || ['true', 'false'])].map((v) => element('option', { textContent: v })));
  } else {
    input = element('input', { name: p.name, placeholder: p.name.endsWith(keyed) ? 'key=value' : p.description || p.format || '', required: Boolean(p.required) });
  }
  input.dataset.in = p.in;
  return [label, input];
}

function request(path, verb, form) {
  const query = new URLSearchParams();
  const options = { method: verb.toUpperCase(), headers: {}, cache: 'no-store' };
  for (const input of form.querySelectorAll('[data-in]')) {
    if (input.dataset.in === 'path') path = path.replace('{' + input.name + '}', encodeURIComponent(input.value));
    else if (input.value === '') continue;
    else if (input.dataset.in === 'header') options.headers[input.name] = input.value;
    else if (input.name.endsWith(keyed)) {
      const [key, ...value] = input.value.split('=');
      query.append(input.name.slice(0, -keyed.length) + '.' + key, value.join('='));
    } else query.append(input.name, input.value);
  }
  if (byId('key').value) options.headers.Authorization = 'Bearer ' + byId('key').value.trim();
  const body = form.querySelector('[name=body]');
  if (body && body.value.trim()) {
    options.body = body.value;
    options.headers['Content-Type'] = 'application/json';
  }
  return [path + (String(query) ? '?' + query : ''), options];
}

async function send(path, verb, form, output) {
  const [url, options] = request(path, verb, form);
  output.hidden = false;
  output.textContent = options.method + ' ' + url + '\n…';
  try {
    const answer = await fetch(url, options);
    let text = await answer.text();
    try { text = JSON.stringify(JSON.parse(text), null, 2); } catch { /* it is no JSON */ }
    const headers = [...answer.headers].map(([k, v]) => k + ': ' + v).join('\n');
    output.textContent = options.method + ' ' + url + '\n' + answer.status + '\n' + headers + '\n\n' + text;
  } catch (err) {
    output.textContent = String(err);
  }
}

function operation(spec, path, verb, op) {
  const output = element('pre', { className: 'wide', hidden: true });
  const form = element('form', {},
    ...(op.parameters || []).flatMap((p) => field(spec, p)),
    element('button', { textContent: 'Send', className: 'wide' }), output);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    send(path, verb, form, output);
  });
  const box = element('details', {},
    element('summary', {}, element('span', { className: 'verb ' + verb, textContent: verb.toUpperCase() }),
      element('code', { textContent: path }), element('span', { className: 'note', textContent: op.summary || '' })), form);
  box.dataset.text = (verb + ' ' + path + ' ' + (op.summary || '')).toLowerCase();
  return box;
}

async function start() {
  const spec = await (await fetch('/openapi.json')).json();
  byId('version').textContent = spec.info.version;
  const groups = new Map(spec.tags.map((t) => [t.name, []]));
  for (const path of Object.keys(spec.paths).sort()) {
    for (const [verb, op] of Object.entries(spec.paths[path])) {
      groups.get(op.tags[0])?.push(operation(spec, path, verb, op));
    }
  }
  for (const tag of spec.tags) {
    byId('operations').append(element('section', {},
      element('h2', { textContent: tag.name + ' ' }, element('small', { textContent: tag.description || '' })), ...groups.get(tag.name)));
  }
  byId('find').addEventListener('input', (event) => {
    const word = event.target.value.toLowerCase();
    for (const box of document.querySelectorAll('details')) box.hidden = !box.dataset.text.includes(word);
  });
}

start();

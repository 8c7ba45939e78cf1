// The form of the plugin-era host, played by a user: index.json in the real rjsf, in jsdom. Reads {index, values, leaked} from stdin
// (the manifest, what a user types into each field, what another plugin left in a template) and prints what each scene submitted,
// as JSON. The libraries are found by NODE_PATH.
"use strict";

const { JSDOM } = require("jsdom");
const page = new JSDOM("<!doctype html><body></body>", { pretendToBeVisual: true });
for (const name of ["window", "document", "Node", "Element", "HTMLElement", "HTMLInputElement", "DocumentFragment", "Event"])
  globalThis[name] = name === "window" ? page.window : page.window[name];
Object.defineProperty(globalThis, "navigator", { value: page.window.navigator, configurable: true });
globalThis.getComputedStyle = page.window.getComputedStyle.bind(page.window);
globalThis.IS_REACT_ACT_ENVIRONMENT = true;

// What React and rjsf complain about on the console, as in a user's browser.
const complaints = new Set();
for (const level of ["error", "warn"]) console[level] = (...words) => complaints.add(words.join(" ").split("\n")[0]);

const { createElement: element } = require("react");
const { render, cleanup, fireEvent, within } = require("@testing-library/react");
const userEvent = require("@testing-library/user-event").default;
const Form = require("@rjsf/core").default;
const validator = require("@rjsf/validator-ajv8").default;

// What the host's widget of this name was seen to do, written anew: a box that opens a list; the choice is one value with
// `multiple: false` and a list of them otherwise.
function AutoCompleteWidget({ id, value, options, onChange }) {
  const many = options.multiple !== false;
  const choose = (chosen) => onChange(many ? [...(value ?? []), chosen] : chosen);
  return element(
    "div",
    { id },
    element("output", null, String(value ?? "")),
    element(
      "ul",
      { role: "listbox" },
      (options.enumOptions ?? []).map(({ value: one, label }) =>
        element("li", { key: label, role: "option", "aria-selected": one === value, onClick: () => choose(one) }, label),
      ),
    ),
  );
}

class Page {
  // The form as the host builds it from a manifest. It saves a template without validating it.
  constructor({ parameters, parameters_ui: uiSchema }, formData) {
    const required = Object.keys(parameters).filter((name) => parameters[name].required === true);
    const schema = { type: "object", properties: parameters, required };
    this.submitted = null;
    const onSubmit = ({ formData: values }) => (this.submitted = values);
    const props = { schema, uiSchema, formData, validator, onSubmit, noValidate: true, noHtml5Validate: true };
    this.view = render(element(Form, { ...props, widgets: { AutoCompleteWidget } }));
    this.user = userEvent.setup({ document: page.window.document, delay: null });
  }

  field(name) {
    return page.window.document.getElementById(`root_${name}`);
  }

  choose(name, option) {
    fireEvent.click(within(this.field(name)).getByRole("option", { name: option }));
  }

  async type(name, text) {
    await this.user.clear(this.field(name));
    if (text) await this.user.type(this.field(name), text);
  }

  submit() {
    fireEvent.submit(this.view.container.querySelector("form"));
    if (this.submitted === null) throw new Error("the form did not submit");
    const values = JSON.parse(JSON.stringify(this.submitted));
    cleanup();
    return values;
  }
}

async function changed(index, values) {
  const form = new Page(index);
  for (const [name, kind] of Object.entries(index.parameters)) {
    if (kind.enum) form.choose(name, values[name]);
    else if (kind.type === "boolean") await form.user.click(form.field(name));
    else await form.type(name, String(values[name]));
  }
  return form.submit();
}

function chosen(index) {
  const enums = Object.entries(index.parameters).filter(([, kind]) => kind.enum);
  const submitted = (name, option) => {
    const form = new Page(index);
    form.choose(name, option);
    return [option, form.submit()];
  };
  return Object.fromEntries(enums.map(([name, kind]) => [name, Object.fromEntries(kind.enum.map((one) => submitted(name, one)))]));
}

// Editing: the host hands every value back as a string, a switch as a word or as what a checkbox says.
function edited(index, before, leaked, [yes, no]) {
  const asText = (value) => (value === true ? yes : value === false ? no : String(value));
  const strings = (values) => Object.fromEntries(Object.entries(values).map(([name, value]) => [name, asText(value)]));
  const once = new Page(index, { ...leaked, ...strings(before) }).submit();
  return { once, again: new Page(index, strings(once)).submit() };
}

async function cleared(index) {
  const form = new Page(index);
  for (const [name, kind] of Object.entries(index.parameters))
    if (kind.type === "integer" || kind.type === "number") await form.type(name, "");
  return form.submit();
}

async function main() {
  const { index, values, leaked } = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
  const untouched = new Page(index).submit();
  const filled = await changed(index, values);
  const scenes = { untouched, chosen: chosen(index), changed: filled, cleared: await cleared(index) };
  scenes.complaints = [...complaints]; // before editing, where the host's strings for switches make React complain
  const words = ["true", "false"];
  const boxes = ["on", "off"];
  scenes.edited = Object.fromEntries(
    [["defaults", untouched], ["changes", filled]].flatMap(([name, from]) => [
      [`${name} as words`, edited(index, from, leaked, words)],
      [`${name} as boxes`, edited(index, from, leaked, boxes)],
    ]),
  );
  process.stdout.write(JSON.stringify(scenes));
}

main();

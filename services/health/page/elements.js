// Owns how elements are made: what is text stays text, whoever wrote it.

/** An element; attributes that are functions are listeners, children that are strings are text, and null is nothing. */
export function el(name, attributes, ...children) {
  return furnish(document.createElement(name), attributes, children);
}

/** The same in a drawing. */
export function svg(name, attributes, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

/** Gives an element other children. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child != null));
  return element;
}

/** Changes the text of an element, if it is another one: a text that stays is not read out again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
  return element;
}

function furnish(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, String(value));
  }
  return fill(element, ...children);
}

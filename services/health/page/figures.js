// Owns how figures are written: numbers with their units, sizes, times.

export const MINUTE = 60_000;
export const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;

const formats = new Map();
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const seconds = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short" });

/** A number with at most so many decimals. */
export function number(value, decimals = 0) {
  let format = formats.get(decimals);
  if (!format) formats.set(decimals, (format = new Intl.NumberFormat("en", { maximumFractionDigits: decimals })));
  return format.format(value ?? 0);
}

/** A number with just so many decimals, for columns. */
export function fixed(value, decimals) {
  return (value ?? 0).toFixed(decimals);
}

/** A part of the hundred; one that is not whole never looks whole. */
export function percent(value) {
  const shown = value > 99.9 && value < 100 ? Math.floor(value * 100) / 100 : value;
  return number(shown, shown > 99 || shown < 1 ? 2 : 1);
}

/** A count and what is counted. */
export function count(value, one, many = `${one}s`) {
  return `${number(value)} ${value === 1 ? one : many}`;
}

/** Bytes. */
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  for (; bytes >= 1024 && unit < units.length - 1; unit++) bytes /= 1024;
  return `${number(bytes, unit && bytes < 100 ? 1 : 0)} ${units[unit]}`;
}

/** A time of day, here. */
export function timeOfDay(time, withSeconds = false) {
  return (withSeconds ? seconds : clock).format(time);
}

/** A day, here. */
export function date(time) {
  return day.format(time);
}

/** A time, with its day. */
export function moment(time) {
  return `${date(time)}, ${timeOfDay(time, true)}`;
}

/** How long ago something was. */
export function ago(time, now = Date.now()) {
  const passed = Math.max(0, now - time);
  if (passed < MINUTE) return `${Math.round(passed / 1000)} s ago`;
  if (passed < 2 * HOUR) return `${Math.round(passed / MINUTE)} min ago`;
  return passed < 2 * DAY ? `${Math.round(passed / HOUR)} h ago` : `${Math.round(passed / DAY)} d ago`;
}

/** The beginning of an id; the whole of it belongs in a title. */
export function brief(id) {
  return id.length > 12 ? `${id.slice(0, 8)}…` : id;
}

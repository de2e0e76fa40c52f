// Numbers and times as the command line writes them (semievol/wording.py).

export const count = (number, noun) => `${number.toLocaleString("en-US")}${noun ? ` ${noun}${number === 1 ? "" : "s"}` : ""}`;

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Seconds as 7.3 s, 1:05 (minutes) or 2:03:09 (hours). */
export function duration(seconds) {
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const pad = (number) => String(number).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`;
}

/** Roughly how long: "8 s", "5 min", "3 h", "2 days". */
export function roughly(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  return seconds < 36 * 3600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

export const clock = (unixSeconds) => CLOCK.format(1000 * unixSeconds);
export const day = (unixSeconds) => DAY.format(1000 * unixSeconds);

export function bytes(number) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let place = 0;
  for (; number >= 999.5 && place < units.length - 1; place++) number /= 1000;
  return `${place && number < 99.5 ? number.toFixed(1) : Math.round(number).toLocaleString("en-US")} ${units[place]}`;
}

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Of a number that may be missing. */
export const decimals = (value, places = 3) => (value === null || value === undefined ? "–" : value.toFixed(places));

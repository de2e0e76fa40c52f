"""What is looked for in a page as Chromium lays it out. Each check is JavaScript that gives what it found."""

from typing import Any, Literal

from playwright.sync_api import Page

THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
WIDTHS = (390, 1280)
HEIGHT = 900

LINES = """
const shown = (box, element) => {
  let {left, right, top, bottom} = box;
  for (let outer = element; outer && outer !== document.body; outer = outer.parentElement) {
    if (getComputedStyle(outer).overflow === "visible") continue;
    const frame = outer.getBoundingClientRect();
    [left, right] = [Math.max(left, frame.left), Math.min(right, frame.right)];
    [top, bottom] = [Math.max(top, frame.top), Math.min(bottom, frame.bottom)];
  }
  return {left, right, top, bottom};
};
const linesOf = () => {
  const lines = [];
  const root = document.querySelector("dialog[open]") ?? document.body;
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest("title, desc, style, option, .unseen")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const whole of range.getClientRects()) {
      const box = shown(whole, parent);
      if (box.right - box.left > 1 && box.bottom - box.top > 1)
        lines.push({node, parent, box, text: node.data.trim().slice(0, 40)});
    }
  }
  return lines;
};
"""
"""JavaScript: every line of text that is shown, with the part of its box that no frame cuts off."""

CUT = """
  const lines = linesOf();
  return lines.filter(({box}) => box.left < 0 || box.right > innerWidth + 0.5).map(({text}) => text);
"""

OVERLAPS = """
  const lines = linesOf();
  const found = [];
  lines.sort((a, b) => a.box.top - b.box.top);
  for (let i = 0; i < lines.length; i++)
    for (let j = i + 1; j < lines.length && lines[j].box.top < lines[i].box.bottom - 4; j++) {
      const a = lines[i].box, b = lines[j].box;
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1;
      if (wide && lines[i].node !== lines[j].node) found.push([lines[i].text, lines[j].text]);
    }
  return found;
"""

PALE = """
  const lines = linesOf();
  const channels = (color) => {
    const values = color.match(/[\\d.]+/g).map(Number);
    return color.startsWith("color(") ? values.map((v, i) => i < 3 ? 255 * v : v) : values;
  };
  const light = (color) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = channels(color).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return (channels(color)[3] ?? 1) > 0 ? color : ground(element.parentElement);
  };
  const found = new Set();
  for (const {parent, text} of lines) {
    const style = getComputedStyle(parent);
    const ink = light(parent.closest("svg") ? style.fill : style.color), paper = light(ground(parent));
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (contrast < 4.5) found.add(`${text}: ${contrast.toFixed(2)}`);
  }
  return [...found];
"""
"""JavaScript: texts whose contrast is below WCAG AA's 4.5."""


CHECKS = {
    "wide": "return document.documentElement.scrollWidth > innerWidth",
    "cut": LINES + CUT,
    "overlaps": LINES + OVERLAPS,
    "pale": LINES + PALE,
    "ground": "return getComputedStyle(document.body).backgroundColor",
}


def look(page: Page) -> dict[str, dict[str, Any]]:
    """What each check says of the page in each width and theme."""
    told = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": HEIGHT})
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            told[f"{width} {theme}"] = {
                check: page.evaluate(f"() => {{ {script} }}") for check, script in CHECKS.items()
            }
    return told

// What on a page is hard to read: the contrast of WCAG 2 between each element's own text and what lies below it.
() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const parse = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((value, i) => value * a + below[i] * (1 - a));
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const backdrop = (element) =>
    element ? over(parse(getComputedStyle(element).backgroundColor), backdrop(element.parentElement)) : [1, 1, 1];
  const own = (element) => [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  const seen = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  return [...document.querySelectorAll("body *")]
    .filter((element) => own(element) && seen(element))
    .map((element) => {
      const below = backdrop(element);
      const written = over(parse(getComputedStyle(element).color), below);
      const [dark, light] = [below, written].map(luminance).sort((a, b) => a - b);
      return { element: element.outerHTML.slice(0, 80), contrast: (light + 0.05) / (dark + 0.05) };
    })
    .filter(({ contrast }) => contrast < 4.5);
};

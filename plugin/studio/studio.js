// What a page adds in place, so that only what is new comes over the socket. Texts stay texts.
"use strict";

function studioLog(id, text, place) {
  const box = getHtmlElement(id);
  if (!box) return;
  if (place === "before") {
    const height = box.scrollHeight;
    box.prepend(text);
    box.scrollTop += box.scrollHeight - height;
    return;
  }
  const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  if (place === "new") box.replaceChildren();
  box.append(text);
  while (box.childNodes.length > 500) box.firstChild.remove();
  if (follows || place === "new") box.scrollTop = box.scrollHeight;
}

function studioRows(id, rows) {
  const known = mounted_app.elements[id]?.props.rows ?? [];
  for (const row of rows) Object.assign(known.find((one) => one.name === row.name) ?? {}, row);
}

// patches: [number of a series, points that stay, points after them]
function studioPoints(id, patches) {
  const series = mounted_app.elements[id]?.props.options.series;
  if (!series) return;
  for (const [number, stay, points] of patches) series[number].data.splice(stay, Infinity, ...points);
  getElement(id)?.chart?.setOption({ series: series.map((one) => ({ data: [...one.data] })) });
}

// A band between the second and the third value of each point.
function studioBand(params, api) {
  const at = params.dataIndex, last = params.dataIndexInside;
  const corner = (index, value) => api.coord([api.value(0, index), api.value(value, index)]);
  const style = { fill: api.visual("color"), opacity: 0.2 };
  if (at === 0) return { type: "group", children: [] };
  const points = [corner(last - 1, 1), corner(last, 1), corner(last, 2), corner(last - 1, 2)];
  return { type: "polygon", shape: { points }, style, silent: true };
}

function studioTheme(tries = 50) {
  const dark = document.body.classList.contains("body--dark");
  const ink = dark ? "#cfcbdb" : "#4b4757", line = dark ? "#34323f" : "#e2dfe9";
  const color = { color: ink }, lineStyle = { color: line };
  const axis = { axisLabel: color, nameTextStyle: color, splitLine: { lineStyle }, axisLine: { lineStyle: color } };
  const tooltip = { backgroundColor: dark ? "#24222c" : "#fff", textStyle: color, borderColor: line };
  const saveAsImage = { backgroundColor: dark ? "#1b1a20" : "#fff", iconStyle: { borderColor: ink } };
  const legend = { textStyle: color, pageTextStyle: color };
  let late = false;
  for (const box of document.querySelectorAll(".nicegui-echart")) {
    const chart = getElement(box.id.slice(1))?.chart;
    chart?.setOption({ xAxis: axis, yAxis: axis, legend, tooltip, toolbox: { feature: { saveAsImage } } });
    late ||= !chart;
  }
  if (late && tries) setTimeout(studioTheme, 100, tries - 1);
}

addEventListener("DOMContentLoaded", () => {
  new MutationObserver(() => studioTheme()).observe(document.body, { attributeFilter: ["class"] });
});

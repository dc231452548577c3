// A click, or an arrow key, chooses a patch; the maps beside it show how alike all others are.
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

for (const box of document.querySelectorAll("[data-patches]")) {
  const [rows, columns] = box.dataset.patches.split(",").map(Number);
  const colours = bytes(box.dataset.colours);
  const [button, mark, words] = ["button", ".mark", "output"].map((of) => box.querySelector(of));
  const maps = [...box.querySelectorAll("canvas")].map((canvas) => ({
    pen: canvas.getContext("2d"), values: bytes(canvas.dataset.values),
  }));
  let row = rows >> 1, column = columns >> 1;

  const choose = (newRow, newColumn) => {
    row = Math.min(Math.max(newRow, 0), rows - 1);
    column = Math.min(Math.max(newColumn, 0), columns - 1);
    const first = (row * columns + column) * rows * columns;
    for (const { pen, values } of maps) {
      const picture = pen.createImageData(columns, rows);
      for (let patch = 0; patch < rows * columns; patch++) {
        const colour = 3 * values[first + patch];
        picture.data.set([...colours.subarray(colour, colour + 3), 255], 4 * patch);
      }
      pen.putImageData(picture, 0, 0);
    }
    mark.style.left = `${(100 * column) / columns}%`;
    mark.style.top = `${(100 * row) / rows}%`;
    words.textContent = `row ${row + 1} of ${rows}, column ${column + 1} of ${columns}`;
  };

  button.addEventListener("click", (event) => {
    if (!event.detail) return; // a key: there is no place
    const { left, top, width, height } = button.getBoundingClientRect();
    choose(Math.floor((rows * (event.clientY - top)) / height),
      Math.floor((columns * (event.clientX - left)) / width));
  });
  button.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1],
      ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (down || right) {
      event.preventDefault();
      choose(row + down, column + right);
    }
  });
  mark.style.width = `${100 / columns}%`;
  mark.style.height = `${100 / rows}%`;
  choose(row, column);
}
